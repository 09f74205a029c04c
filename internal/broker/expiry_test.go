package broker

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/pki"
	"github.com/mooring-edge/mooring/internal/store"
	"github.com/mooring-edge/mooring/pkg/health"
)

func TestExpiryIsTold(t *testing.T) {
	st, err := store.Open(t.Context(), store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	ca, err := openAuthority(t.Context(), st, "mooring.test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.DefaultBroker()
	cfg.Front.PublicEndpoint = "edge.example:443"
	b := &broker{ca: ca, cert: newServerCert(ca.Keyring, cfg), health: health.New(health.Config{})}
	end := ca.Keyring().Issuer().NotAfter()
	for _, tc := range []struct {
		at     time.Time
		status health.Status
		say    string
	}{
		{time.Now(), health.True, "valid until"},
		{end.Add(-caNotice + time.Hour), health.False, "broker ca rotate"},
		{end, health.False, "broker ca rotate"},
	} {
		b.checkCA(tc.at)
		if c := b.health.Get(condCA); c.Status != tc.status || !strings.Contains(c.Message, tc.say) {
			t.Errorf("at %s: %+v", tc.at, c)
		}
	}
	if c := b.health.Get(condCertificate); c.Status != health.True {
		t.Errorf("%+v", c)
	}

	if _, err := ca.Change(t.Context(), func(k *pki.Keyring) (*pki.Keyring, error) { return k.Add(time.Now()) }); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(&expiryCollector{ring: ca.Keyring, cert: b.cert})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue()
		}
	}
	const caName, certName = "mooring_ca_expiry_timestamp_seconds", "mooring_serving_certificate_expiry_timestamp_seconds"
	if len(got) != 3 || got[caName+"/issuer"] != float64(end.Unix()) || got[caName+"/next"] < float64(end.Unix()) || got[certName] < float64(time.Now().Unix()) {
		t.Errorf("metrics %v", got)
	}
}
