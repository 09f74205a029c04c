package agent

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/mooring-edge/mooring/pkg/join/jointest"
)

// TestAPIConnectionsMove: a client that keeps its connection to the API server open for good comes to the new session, and
// not while it asks something. Mechanism: apiEndpoint.move. Seen failing without it (the old session never ends), and without
// its wait for a pause (a request is cut).
func TestAPIConnectionsMove(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	old := s.session()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.api.CAPEM)
	c, err := tls.Dial("tcp", cfg.APIAddress, &tls.Config{RootCAs: roots, ServerName: jointest.APIServerName})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	br := bufio.NewReader(c)
	ask := func() error {
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, "GET /x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := old.Drain(time.Millisecond); err != nil {
		t.Fatal(err)
	}
	next := s.session()
	if !next.PeerHello().Handover {
		t.Error("the agent does not say that it hands over")
	}
	for began := time.Now(); time.Since(began) < 2*moveIdle; time.Sleep(moveIdle / 40) { // the client's own pace
		if err := ask(); err != nil {
			t.Fatalf("cut while in use, after %s: %v", time.Since(began), err)
		}
	}
	if b, err := br.ReadByte(); err != io.EOF {
		t.Fatalf("read %q, %v; want the connection to be closed once it is idle", fmt.Sprint(b), err)
	}
	select {
	case <-old.Done():
	case <-time.After(time.Minute):
		t.Fatal("the old session lives on")
	}
	if next.Err() != nil {
		t.Errorf("the new session: %v", next.Err())
	}
}
