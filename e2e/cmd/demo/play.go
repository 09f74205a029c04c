package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mooring-edge/mooring/e2e/harness"
)

const (
	tenantName = "acme"
	siteName   = "harbour"
	nodeName   = "edge-1"
)

type demo struct {
	ctx context.Context
	out *printer
	env *harness.Env

	platform *harness.Platform
	tenant   *harness.Tenant
	site     *harness.Site
	box      *harness.Box
}

// play goes through the whole story; an error ends it.
func (d *demo) play() error {
	for _, act := range []func() error{
		d.startPlatform, d.addTenant, d.startControlPlane, d.openSite, d.createToken, d.join,
		d.getNodes, d.logs, d.exec, d.whatLeft,
	} {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) startPlatform() error {
	d.out.step("The platform: etcd and the broker, in a network of their own")
	start := time.Now()
	var err error
	if d.platform, err = d.env.StartPlatform(d.ctx); err != nil {
		return err
	}
	d.out.command("broker serve --config %s", d.platform.BrokerConfigPath())
	if err := d.platform.StartBroker(d.ctx); err != nil {
		return err
	}
	d.out.since(start, "broker listens on %s, one port for everything", harness.BrokerName+":"+harness.BrokerPort)
	return nil
}

func (d *demo) addTenant() error {
	d.out.step("A tenant, whose API server is up: the broker makes itself an account there, the API server gets a way to its nodes")
	var err error
	if d.tenant, err = d.platform.NewTenant(d.ctx, tenantName); err != nil {
		return err
	}
	d.out.command("kube-apiserver …")
	d.out.command("broker tenant add %s --kubeconfig %s", tenantName, d.tenant.Kubeconfig())
	d.out.command("broker egress issue --tenant %s --out %s", tenantName, d.tenant.EgressDir())
	return d.tenant.Admit(d.ctx)
}

func (d *demo) startControlPlane() error {
	d.out.step("Its control plane, the API server restarted with that way; it listens on the platform's loopback only")
	d.out.command(`kube-apiserver --egress-selector-config-file=%s/egress-selector.yaml \
    --kubelet-preferred-address-types=Hostname,InternalIP --kubelet-certificate-authority=pki/ca.crt …`, d.tenant.EgressDir())
	start := time.Now()
	if err := d.tenant.Start(d.ctx); err != nil {
		return err
	}
	if err := d.tenant.SetKubeletConfig(d.ctx); err != nil {
		return err
	}
	d.out.since(start, "kube-apiserver, kube-controller-manager, kube-scheduler up")
	return nil
}

func (d *demo) openSite() error {
	d.out.step("An edge site: one machine, 192.168.1.10, behind a NAT that lets out nothing but the broker's port")
	start := time.Now()
	var err error
	if d.site, err = d.platform.AddSite(siteName); err != nil {
		return err
	}
	if d.box, err = d.site.NewBox(nodeName); err != nil {
		return err
	}
	if err := d.box.ConfigureAgent("auto"); err != nil {
		return err
	}
	if err := d.box.PowerOn(d.ctx); err != nil {
		return err
	}
	d.out.since(start, "%s is on; containerd runs, nothing else", nodeName)
	return nil
}

func (d *demo) createToken() error {
	d.out.step("A token for one node, put on the machine: all that it gets")
	d.out.command("broker token create --tenant %s > join.yaml", tenantName)
	bundle, err := d.tenant.Token(d.ctx)
	if err != nil {
		return err
	}
	for line := range strings.Lines(bundle) {
		if secret, ok := strings.CutPrefix(line, "token: "); ok {
			id, _, _ := strings.Cut(secret, ".")
			line = "token: " + id + ".********\n"
		}
		if !strings.HasPrefix(line, "#") {
			d.out.block("  " + line)
		}
	}
	return d.box.Hand(bundle)
}

// join starts the agent and tells the stations as they are reached.
func (d *demo) join() error {
	d.out.step("The node joins")
	d.out.command("edge-agent run")
	start := time.Now()
	if err := d.box.StartAgent(); err != nil {
		return err
	}
	told := map[string]bool{}
	tell := func(what string) {
		if !told[what] {
			told[what] = true
			d.out.since(start, "%s", what)
		}
	}
	_, err := d.env.Wait(d.ctx, nodeName+" to be Ready", 2*time.Minute, func(ctx context.Context) error {
		for _, station := range d.stations(ctx) {
			tell(station)
		}
		return d.tenant.NodeReady(ctx, nodeName)
	})
	if err != nil {
		return err
	}
	tell("Ready")
	return nil
}

// stations are those that the node has passed, as the platform sees them.
func (d *demo) stations(ctx context.Context) (passed []string) {
	var nodes []struct {
		Connected bool
		Session   struct{ Transport string }
	}
	out, err := d.platform.BrokerCommand(ctx, "node", "list", "--tenant", tenantName, "-o", "json")
	if err != nil || json.Unmarshal([]byte(out), &nodes) != nil || len(nodes) == 0 {
		return nil
	}
	passed = append(passed, "enrolled: has an identity of the broker's CA")
	if nodes[0].Connected {
		passed = append(passed, "tunnel up over "+nodes[0].Session.Transport)
	}
	out, err = d.tenant.Kubectl(ctx, "get", "csr", "-o",
		`jsonpath={range .items[?(@.status.certificate)]}{.spec.signerName}{"\n"}{end}`)
	if err != nil {
		return passed
	}
	if strings.Contains(out, "kube-apiserver-client-kubelet") {
		passed = append(passed, "kubelet has its client certificate")
	}
	if strings.Contains(out, "kubelet-serving") {
		passed = append(passed, "kubelet has its serving certificate, checked and approved")
	}
	return passed
}

func (d *demo) getNodes() error {
	d.out.step("What the tenant sees")
	_, err := d.kubectl("get", "nodes", "-o", "wide")
	return err
}

const pod = `apiVersion: v1
kind: Pod
metadata: {name: hello}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: hello
    image: mooring.test/busybox:1
    imagePullPolicy: Never
    command: [sh, -c, 'echo "hello from $NODE_NAME, a pod at the edge"; sleep 1000000']
    env: [{name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]
`

func (d *demo) logs() error {
	d.out.step("A pod on the node, and its logs: API server -> broker -> tunnel -> kubelet")
	if err := d.tenant.Apply(d.ctx, pod); err != nil {
		return err
	}
	start := time.Now()
	if _, err := d.env.Wait(d.ctx, "the pod", time.Minute, func(ctx context.Context) error {
		return d.tenant.PodRunning(ctx, "hello")
	}); err != nil {
		return err
	}
	d.out.since(start, "pod hello runs")
	return d.expect("hello from "+nodeName, "logs", "hello")
}

func (d *demo) exec() error {
	d.out.step("A command in the pod, and the kubelet's own metrics")
	if err := d.expect("hello", "exec", "hello", "--", "sh", "-c", "hostname; uptime"); err != nil {
		return err
	}
	path := "/api/v1/nodes/" + nodeName + "/proxy/metrics"
	out, err := d.tenant.Kubectl(d.ctx, "get", "--raw", path)
	if err != nil {
		return err
	}
	d.out.command("kubectl get --raw %s | wc -l", path)
	d.out.block(fmt.Sprint(strings.Count(out, "\n")))
	return nil
}

func (d *demo) whatLeft() error {
	d.out.step("What left the site, as its router counted")
	left, err := d.site.Left()
	if err != nil {
		return err
	}
	d.out.block(fmt.Sprintf("to %s:%s   udp %6d packets\n%s   tcp %6d packets\nto anywhere else        %6d packets",
		harness.BrokerAddress, harness.BrokerPort, left.UDP,
		strings.Repeat(" ", len("to "+harness.BrokerAddress+":"+harness.BrokerPort)), left.TCP, left.Other))
	if left.Other != 0 {
		return fmt.Errorf("something else wanted to leave the site: %s", left.OtherTo)
	}
	return nil
}

// kubectl shows a command and what it prints.
func (d *demo) kubectl(args ...string) (string, error) {
	d.out.command("kubectl %s", shellLine(args))
	out, err := d.tenant.Kubectl(d.ctx, args...)
	d.out.block(out)
	return out, err
}

func (d *demo) expect(text string, args ...string) error {
	out, err := d.kubectl(args...)
	if err == nil && !strings.Contains(out, text) {
		err = errors.New("that is not what was expected: " + text)
	}
	return err
}

// shellLine quotes the arguments that a shell would take apart.
func shellLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if strings.ContainsAny(a, " ;|$'\"") {
			a = "'" + a + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

// tryByHand says how to go on; every line can be pasted.
func (d *demo) tryByHand() {
	d.out.step("Your turn: it stays up until Ctrl-C. In another terminal, as root:")
	d.out.block(fmt.Sprintf(`
# kubectl, where the API server is
alias k='%s'
k get pods -A -o wide
k exec -it hello -- sh
k logs -f hello

# the broker
export MOORING_BROKER_SOCKET=%s
%s status
%s node list

# a shell on the edge node: try edge-agent status, edge-agent doctor, crashing things
%s sh

# all logs
ls %s/logs
`, d.tenant.KubectlLine(), d.platform.BrokerSocket(), d.env.Product("broker"), d.env.Product("broker"),
		d.box.ShellCommand(), d.env.Dir()))
}
