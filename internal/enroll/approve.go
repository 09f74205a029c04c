package enroll

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/time/rate"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/mooring-edge/mooring/internal/audit"
	"github.com/mooring-edge/mooring/internal/tenant"
)

// pending tells whether nobody has decided on the request yet.
func pending(csr *certificatesv1.CertificateSigningRequest) bool {
	for _, c := range csr.Status.Conditions {
		if c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
			return false
		}
	}
	return len(csr.Status.Certificate) == 0
}

// judge looks at one request and acts. again says when to look once more; 0 = only if something changes.
func (r *approverRun) judge(ctx context.Context, name string) (again time.Duration, err error) {
	obj, exists, err := r.informer.GetStore().GetByKey(name)
	if err != nil || !exists {
		r.forget(name)
		return 0, err
	}
	csr, ok := obj.(*certificatesv1.CertificateSigningRequest)
	if !ok || !pending(csr) {
		r.forget(name)
		return 0, nil
	}
	if r.crowded(csr) {
		return crowdedRecheck * r.cfg.Recheck, nil
	}
	node, ours := requestedNode(csr)
	if !ours {
		return 0, nil
	}
	v, reason, err := r.decide(ctx, csr, node)
	if err != nil {
		return 0, err
	}
	switch v {
	case leave:
		r.report(ctx, csr, node, reason)
		return 0, nil
	case wait:
		r.report(ctx, csr, node, reason)
		r.setWaiting(csr)
		return r.cfg.Recheck, nil
	}
	if delay := r.throttle(node); delay > 0 {
		return delay, nil
	}
	return 0, r.approve(ctx, csr, node)
}

// decide gathers what the checks need, and makes them. A serving request that truly comes from the node also
// says that its kubelet is in, so the node's bootstrap tokens have done their work.
func (r *approverRun) decide(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, node string) (verdict, string, error) {
	if v, reason := checkStatic(csr, node); v != approve {
		return v, reason, nil
	}
	if controlPlaneName(r.tenant, node) {
		return leave, "the node is called what the API server is", nil
	}
	rec, err := r.cfg.Nodes.Get(ctx, r.tenant.Name, node)
	switch {
	case errors.Is(err, ErrNodeNotFound):
		return wait, "the node is not enrolled with this broker", nil
	case err != nil:
		return leave, "", err
	case rec.RevokedAt != nil:
		return leave, "the node was revoked by an operator", nil
	}
	if csr.Spec.SignerName == certificatesv1.KubeAPIServerClientKubeletSignerName {
		return approve, "", nil
	}
	if err := r.clean(ctx, csr, node); err != nil {
		return leave, "", err
	}
	reserved := r.reserved.Load()
	if reserved == nil {
		return wait, "the API server has not told its addresses yet", nil
	}
	attested, live := r.cfg.Attester.NodeAddresses(r.tenant.Name, node)
	if !live {
		return wait, "the node has no live session", nil
	}
	v, reason := checkServing(csr, node, attested, *reserved)
	return v, reason, nil
}

func (r *approverRun) approve(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, node string) error {
	approved := csr.DeepCopy()
	approved.Status.Conditions = append(approved.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "MooringNode", Message: "Checked against the enrolled node " + node,
	})
	_, err := r.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, approved, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("approve: %w", err)
	}
	r.cfg.Metrics.csrs.WithLabelValues(signerLabel(csr), "approved").Inc()
	r.record(audit.OK, csr, node, "")
	r.log.Info("certificate request approved", "node", node, "csr", csr.Name, "signer", csr.Spec.SignerName)
	return nil
}

// clean deletes the node's bootstrap tokens, once for each request.
func (r *approverRun) clean(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, node string) error {
	s := r.remember(csr)
	r.mu.Lock()
	done := s.cleaned
	r.mu.Unlock()
	if done {
		return nil
	}
	if err := r.cfg.Bootstrap.EndBootstrap(ctx, r.tenant.Name, node); err != nil {
		return fmt.Errorf("delete the bootstrap tokens of node %s: %w", node, err)
	}
	r.mu.Lock()
	s.cleaned = true
	r.mu.Unlock()
	return nil
}

func (r *approverRun) remember(csr *certificatesv1.CertificateSigningRequest) *seenCSR {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.seen[csr.Name]
	if s == nil || s.uid != csr.UID {
		s = &seenCSR{uid: csr.UID}
		r.seen[csr.Name] = s
	}
	return s
}

func (r *approverRun) setWaiting(csr *certificatesv1.CertificateSigningRequest) {
	s := r.remember(csr)
	r.mu.Lock()
	defer r.mu.Unlock()
	s.waiting = true
}

// crowded tells whether a request that waits has to wait longer, because its requestor (as the API server
// authenticated it) has so many that looking at them all again would cost others.
func (r *approverRun) crowded(csr *certificatesv1.CertificateSigningRequest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.seen[csr.Name]; s == nil || s.uid != csr.UID || !s.waiting {
		return false
	}
	l := r.rechecks[csr.Spec.Username]
	if l == nil {
		if len(r.rechecks) >= maxRequestors {
			clear(r.rechecks) // bootstrap tokens come and go; at worst somebody gets a fresh start
		}
		l = rate.NewLimiter(nodeRechecks, nodeRecheckBurst)
		r.rechecks[csr.Spec.Username] = l
	}
	return !l.Allow()
}

func (r *approverRun) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seen, name)
}

// throttle says how long the node has to wait for its next approval; 0 = not at all, and it is taken. It is asked
// when a request passed all checks, so that nobody spends another node's.
func (r *approverRun) throttle(node string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.limits[node]
	if l == nil {
		l = rate.NewLimiter(nodeApprovals, nodeApprovalBurst)
		r.limits[node] = l
	}
	res := l.Reserve()
	d := res.Delay()
	if d > 0 {
		res.Cancel()
	}
	return d
}

// report tells the operator, once for each request and reason, and not more than he can read.
func (r *approverRun) report(ctx context.Context, csr *certificatesv1.CertificateSigningRequest, node, reason string) {
	s := r.remember(csr)
	r.mu.Lock()
	first, told := s.reason == "", s.reason == reason
	s.reason = reason
	r.mu.Unlock()
	if first {
		r.cfg.Metrics.csrs.WithLabelValues(signerLabel(csr), "left").Inc()
	}
	if told || !r.noise.Allow() {
		return
	}
	r.record(audit.Refused, csr, node, reason)
	r.log.Warn("certificate request not approved", "node", node, "csr", csr.Name, "signer", csr.Spec.SignerName, "requestor", csr.Spec.Username, "reason", reason)
	now := metav1.Now()
	_, err := r.client.CoreV1().Events(metav1.NamespaceDefault).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "mooring-csr-" + string(csr.UID), Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest", Name: csr.Name, UID: csr.UID,
		},
		Type: corev1.EventTypeWarning, Reason: "NotApproved", Message: truncate(reason, 900),
		Source:         corev1.EventSource{Component: managedBy},
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		r.log.Debug("event about a certificate request could not be written", "csr", csr.Name, "err", err)
	}
}

// record writes to the audit log. What is left alone is recorded when it is reported, so at most as often.
func (r *approverRun) record(outcome string, csr *certificatesv1.CertificateSigningRequest, node, reason string) {
	r.cfg.Audit.Record(audit.Event{
		Event: "csr", Outcome: outcome, Actor: csr.Spec.Username, Tenant: r.tenant.Name, Node: node, Reason: reason,
		Detail: map[string]string{"csr": csr.Name, "signer": csr.Spec.SignerName},
	})
}

func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

func signerLabel(csr *certificatesv1.CertificateSigningRequest) string {
	if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName {
		return "serving"
	}
	return "client"
}

// controlPlaneName tells whether a name is one that the tenant's API server is dialled or verified by.
func controlPlaneName(t tenant.Tenant, name string) bool {
	host, _, _ := net.SplitHostPort(t.Address)
	return strings.EqualFold(name, t.ServerName) || strings.EqualFold(name, host)
}

// controlPlaneAddresses are the addresses that only the API server may have a certificate for: where the broker
// dials it, and where pods find it.
func controlPlaneAddresses(ctx context.Context, client kubernetes.Interface, t tenant.Tenant) ([]netip.Addr, error) {
	texts := []string{t.ServerName}
	if host, _, err := net.SplitHostPort(t.Address); err == nil {
		texts = append(texts, host)
	}
	svc, err := client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err): // pods have no way to it then
	case err != nil:
		return nil, fmt.Errorf("read Service default/kubernetes: %w", err)
	default:
		texts = append(append(texts, svc.Spec.ClusterIP), svc.Spec.ClusterIPs...)
	}
	var out []netip.Addr
	for _, s := range texts {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out, nil
}
