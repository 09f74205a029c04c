package join

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/mooring-edge/mooring/internal/enrollapi"
	"github.com/mooring-edge/mooring/pkg/join/kubelet"
)

// grant is an answer to a join request, with the record made of it.
type grant struct {
	record  *Record
	token   string
	expires time.Time
}

// Ready returns the record if the kubelet can be started from what is on disk, without anybody's help;
// else an error that says what is missing.
func (j *Joiner) Ready(id *Identity) (*Record, error) {
	rec, err := j.loadRecord(id)
	if err != nil {
		return nil, err
	}
	return rec, j.pairServes(id.Node, rec)
}

// Record returns what the control plane wants of id's kubelet, if that is on disk. The kubelet's certificate
// may have lapsed all the same; see Ready.
func (j *Joiner) Record(id *Identity) (*Record, error) { return j.loadRecord(id) }

// pairServes says why the kubelet's client certificate is of no use, or nil.
func (j *Joiner) pairServes(node string, rec *Record) error {
	pair, err := j.paths.LoadPair()
	if err != nil {
		return err
	}
	if err := pair.Usable(node, j.clock.Now()); err != nil {
		return err
	}
	// The kubelet's own rotation may bring a certificate from a signer that is not the API server's CA.
	if !pair.IssuedBy([]byte(rec.APIServerCA)) && (rec.ClientIssuer == "" || rec.ClientIssuer != hex.EncodeToString(pair.Leaf.AuthorityKeyId)) {
		return errors.New("the kubelet's client certificate is from another control plane")
	}
	return nil
}

// Bootstrap returns the record once the kubelet has a client certificate, asking for both where they are
// missing; should the node be enrolled as another meanwhile, for what it is then. It goes on until then, or ctx ends, or (with StopOnRefusal) the broker refuses.
func (j *Joiner) Bootstrap(ctx context.Context, id *Identity) (*Record, error) {
	var rec *Record
	err := j.retry(ctx, StepBootstrap, func(ctx context.Context) error {
		var err error
		// It may have been enrolled as another since the last attempt.
		if now, err := j.LoadIdentity(); err == nil {
			id = now
		}
		if rec, err = j.Ready(id); err == nil {
			// A process killed at the very end leaves the key behind, and with it a certificate
			// request that a later bootstrap must not take up again.
			return j.dropPendingKey()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			j.cfg.Logger.Info("the kubelet can't start with what is on disk: asking for what it lacks", "reason", err.Error())
		}
		if err := j.prepareStateDir(); err != nil {
			return needsHand(err)
		}
		rec, err = j.bootstrapOnce(ctx, id)
		if err == nil {
			j.cfg.Metrics.outcome(StepBootstrap, nil)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (j *Joiner) bootstrapOnce(ctx context.Context, id *Identity) (*Record, error) {
	g, err := j.join(ctx, id)
	if err != nil {
		return nil, err
	}
	if j.pairServes(id.Node, g.record) == nil {
		return g.record, nil // only the record was lost
	}
	key, err := j.pendingKey()
	if err != nil {
		return nil, err
	}
	if err := j.reached(pendingWritten); err != nil {
		return nil, err
	}
	certPEM, err := j.requestCertificate(ctx, id.Node, g, key)
	if err != nil {
		return nil, err
	}
	if err := j.reached(csrIssued); err != nil {
		return nil, err
	}
	return g.record, j.keepPair(g.record, certPEM, key)
}

// join asks the broker what the control plane wants, unless an answer whose token still lives is at hand.
func (j *Joiner) join(ctx context.Context, id *Identity) (*grant, error) {
	const margin = 30 * time.Second
	if g := j.grant; g != nil && g.record.Tenant == id.Tenant && g.record.Node == id.Node && j.clock.Now().Add(margin).Before(g.expires) {
		return g, nil
	}
	j.grant = nil
	endpoint := j.endpoint(id.Endpoint)
	j.cfg.Report(Progress{Step: StepBootstrap, Doing: fmt.Sprintf("asking %s what tenant %s wants of its kubelets", endpoint, id.Tenant)})
	var answer enrollapi.JoinResponse
	broker := client{endpoint, j.cfg.Proxy, j.TLS(), j.cfg.RequestTimeout, j.clock}
	if _, err := broker.post(ctx, enrollapi.PathJoin, enrollapi.JoinRequest{}, &answer); err != nil {
		return nil, err
	}
	if err := j.reached(joinAnswered); err != nil {
		return nil, err
	}
	rec := &Record{
		Tenant: id.Tenant, Node: id.Node, APIServerCA: answer.APIServerCA, APIServerName: answer.APIServerName,
		KubeletConfiguration: answer.KubeletConfiguration, Labels: answer.Labels, Taints: answer.Taints, JoinedAt: j.clock.Now().UTC(),
	}
	if err := rec.check(); err != nil {
		return nil, fmt.Errorf("broker %s: its answer is of no use: %w", endpoint, err)
	}
	// What can't be rendered must be known now, not when the kubelet is to be started.
	if _, err := j.Render(rec); err != nil {
		return nil, needsHand(err)
	}
	if err := j.saveRecord(rec); err != nil {
		return nil, err
	}
	if err := j.reached(recordWritten); err != nil {
		return nil, err
	}
	j.grant = &grant{record: rec, token: answer.BootstrapToken, expires: answer.BootstrapExpires}
	return j.grant, nil
}

// pendingKey is the key of the certificate that is being asked for. It is kept until that is there, so
// that a process killed meanwhile finds its request again by the key.
func (j *Joiner) pendingKey() (*ecdsa.PrivateKey, error) {
	key, err := readKey(j.pendingFile())
	if err == nil {
		return key, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		if !damaged(err) {
			return nil, err
		}
		j.cfg.Logger.Warn("the key of the kubelet's certificate request is torn: making another, nothing hangs on it yet", "err", err)
	}
	return j.makeKey(j.pendingFile())
}

func (j *Joiner) dropPendingKey() error {
	if err := os.Remove(j.pendingFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// keepPair makes the certificate the kubelet's.
func (j *Joiner) keepPair(rec *Record, certPEM []byte, key *ecdsa.PrivateKey) error {
	chain := pemCertificates(certPEM)
	if len(chain) == 0 {
		return errors.New("the control plane issued something that is no certificate")
	}
	if j.clock.Now().After(chain[0].NotAfter) {
		return errors.Join(errors.New("the certificate request is an old one, whose certificate has expired; making another"), j.dropPendingKey())
	}
	// Before the pair that is there is given up for it, and before the kubelet would end over it at each start.
	if err := (&kubelet.Pair{Leaf: chain[0], Chain: chain[1:]}).Usable(rec.Node, j.clock.Now()); err != nil {
		return needsHand(errors.Join(fmt.Errorf("what the control plane issued is of no use: %w; look at its signer kubernetes.io/kube-apiserver-client-kubelet", err),
			j.dropPendingKey()))
	}
	rec.ClientIssuer = hex.EncodeToString(chain[0].AuthorityKeyId)
	// Before the pair: a pair whose issuer is not on record would be taken for a stranger's.
	if err := j.saveRecord(rec); err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	if err := j.paths.SavePair(certPEM, keyPEM, j.clock.Now()); err != nil {
		return err
	}
	if err := j.reached(pairWritten); err != nil {
		return err
	}
	if err := j.dropPendingKey(); err != nil {
		return err
	}
	j.grant = nil
	if err := j.reached(pendingRemoved); err != nil {
		return err
	}
	j.cfg.Logger.Info("the kubelet has its client certificate", "node", rec.Node, "expires", chain[0].NotAfter)
	return nil
}
