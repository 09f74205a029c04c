package enroll

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/mooring-edge/mooring/internal/tenant"
)

const (
	// accessTokenLife is what is asked for; an API server may give less.
	accessTokenLife = 90 * 24 * time.Hour
	// provisionTimeout bounds Provision: an operator waits for it.
	provisionTimeout = 45 * time.Second
	provisionPause   = 500 * time.Millisecond
	// policyPatience is how long an API server may take to act on a new admission policy.
	policyPatience = 10 * time.Second
)

// AccessConfig is what Access is made of. Logger is needed.
type AccessConfig struct {
	// NewClient makes the client of a tenant's API server; nil = the package's NewClient.
	NewClient func(tenant.Tenant) (kubernetes.Interface, error)
	Now       Clock // nil = time.Now
	// Konnectivity grants what is needed to know agents of konnectivity by their tokens.
	Konnectivity bool
	Logger       *slog.Logger
}

// Access makes the broker's own account at a tenant, bounded to Rights. Safe for concurrent use.
type Access struct{ cfg AccessConfig }

// NewAccess makes it; it starts nothing.
func NewAccess(cfg AccessConfig) *Access {
	if cfg.NewClient == nil {
		cfg.NewClient = NewClient
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Access{cfg: cfg}
}

// Provision acts with an administrator's access once: it makes or mends the broker's account, its rights, those
// of nodes, and the admission policy, and returns the tenant with the account's token in place of the
// administrator's credentials. It may be repeated. It takes up to 45 s; ErrUnavailable if the API server did not do it.
func (a *Access) Provision(ctx context.Context, admin tenant.Tenant) (tenant.Tenant, error) {
	ctx, cancel := context.WithTimeout(ctx, provisionTimeout)
	defer cancel()
	client, err := a.cfg.NewClient(admin)
	if err != nil {
		return tenant.Tenant{}, err
	}
	defer closeIdle(client)
	var warnings []string
	for {
		if warnings, err = ensureAccess(ctx, client, a.cfg.Konnectivity); err == nil || !passing(err) {
			break
		}
		if !pause(ctx, provisionPause) {
			break
		}
	}
	if err != nil {
		return tenant.Tenant{}, cannotProvision(admin, err)
	}
	t, err := a.token(ctx, client, admin)
	if err != nil {
		return tenant.Tenant{}, cannotProvision(admin, err)
	}
	t.Access.Warnings = warnings
	warning, err := a.try(ctx, t, len(warnings) == 0)
	if err != nil {
		return tenant.Tenant{}, cannotProvision(admin, err)
	}
	if warning != "" {
		t.Access.Warnings = append(t.Access.Warnings, warning)
	}
	for _, w := range t.Access.Warnings {
		a.cfg.Logger.Warn("the broker's account at the tenant is less bounded than it should be", "tenant", t.Name, "reason", w)
	}
	a.cfg.Logger.Info("the broker has an account of its own at the tenant", "tenant", t.Name, "account", t.Access.Account, "expires", t.Access.Expires)
	return t, nil
}

// cannotProvision says what to do about it.
func cannotProvision(t tenant.Tenant, err error) error {
	next := "look at the API server's log, and run the same command again"
	switch {
	case apierrors.IsUnauthorized(err):
		next = "the kubeconfig's credentials are not accepted: get a current one of an administrator"
	case apierrors.IsForbidden(err):
		next = "the kubeconfig has to be that of an administrator (cluster-admin); it is used once and not kept"
	case apierrors.ReasonForError(err) == metav1.StatusReasonUnknown:
		next = "see that it runs and that the broker can reach it there, and run the same command again"
	}
	return fmt.Errorf("tenant %s: make the broker's account at the API server at %s: %w: %w; %s", t.Name, t.Address, ErrUnavailable, err, next)
}

// passing tells whether an error is one of two writers, or of an API server that has just begun (its namespaces
// are made when it runs).
func passing(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTooManyRequests(err) || apierrors.IsServiceUnavailable(err)
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// token asks for a token of the account and returns the tenant with it.
func (a *Access) token(ctx context.Context, client kubernetes.Interface, t tenant.Tenant) (tenant.Tenant, error) {
	life := int64(accessTokenLife / time.Second)
	issued := a.cfg.Now().UTC().Truncate(time.Second)
	got, err := client.CoreV1().ServiceAccounts(metav1.NamespaceSystem).CreateToken(ctx, accountName,
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &life}}, metav1.CreateOptions{})
	if err != nil {
		return tenant.Tenant{}, fmt.Errorf("token of ServiceAccount %s/%s: %w", metav1.NamespaceSystem, accountName, err)
	}
	return t.WithToken(got.Status.Token, tenant.Access{
		Account: accountUser, Issued: issued, Expires: got.Status.ExpirationTimestamp.UTC(), Warnings: t.Access.Warnings,
	})
}

// try shows that the account's token works and, where there is a policy, that it holds: it asks for a Secret that
// is none of the broker's, without making it. The policy may take a moment; a warning says that it never came.
func (a *Access) try(ctx context.Context, t tenant.Tenant, policy bool) (warning string, err error) {
	client, err := a.cfg.NewClient(t)
	if err != nil {
		return "", err
	}
	defer closeIdle(client)
	ctx, cancel := context.WithTimeout(ctx, policyPatience)
	defer cancel()
	for {
		_, err = client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil || apierrors.IsNotFound(err) {
			if !policy {
				return "", nil
			}
			_, err = client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, &corev1.Secret{
				ObjectMeta: ours(metav1.NamespaceSystem, "mooring-policy-check"), Type: corev1.SecretTypeOpaque,
			}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if apierrors.IsInvalid(err) { // the policy's reason; RBAC's is Forbidden
				return "", nil
			}
		}
		if !pause(ctx, provisionPause) {
			break
		}
	}
	if err == nil {
		return "the API server does not act on the ValidatingAdmissionPolicy " + accountName + ": the account may create and delete any Secret of kube-system (though read none)", nil
	}
	return "", fmt.Errorf("use the new account: %w", err)
}

// closeIdle gives back the connections of a client that is not used again.
func closeIdle(c kubernetes.Interface) {
	if rc, ok := c.CoreV1().RESTClient().(*rest.RESTClient); ok && rc != nil && rc.Client != nil {
		utilnet.CloseIdleConnectionsFor(rc.Client.Transport)
	}
}
