package agent

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mooring-edge/mooring/internal/config"
	"github.com/mooring-edge/mooring/internal/enrollapi"
)

// sealed is a box that was let in by a token, and has a disk of its own.
type sealed struct {
	t     *testing.T
	cfg   *config.Agent
	root  string
	token enrollapi.Token
}

func newSealed(t *testing.T) *sealed {
	s := newShore(t)
	cfg := s.node()
	run(t, cfg)
	until(t, cfg.Socket, "ready", isReady)
	b, err := config.LoadJoinBundle(cfg.JoinFile)
	if err != nil {
		t.Fatal(err)
	}
	token, err := enrollapi.ParseToken(b.Token)
	if err != nil {
		t.Fatal(err)
	}
	return &sealed{t, cfg, t.TempDir(), token}
}

func (s *sealed) write(path, content string) {
	s.t.Helper()
	path = filepath.Join(s.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// read returns a file's content, and whether it is there.
func (s *sealed) read(path string) (string, bool) {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.root, path))
	if err != nil && !os.IsNotExist(err) {
		s.t.Fatal(err)
	}
	return string(data), err == nil
}

func (s *sealed) seal() string {
	s.t.Helper()
	said, err := Seal(s.cfg, s.root)
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.Join(said, "\n")
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(text)); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return b.String()
}

// In each file the secret is gone and all else is as it was: cloud-init reads them at the next boot.
func TestSeal(t *testing.T) {
	s := newSealed(t)
	const instance = "var/lib/cloud/instances/box-1/"
	userData := "#cloud-config\nwrite_files:\n  - content: |\n      token: " + s.token.String() + "\nbootcmd: [true]\n"
	pickle := "\x80\x04\x95\x00userdata_raw\x94C" + string(byte(len(userData))) + userData + "\x94u."
	files := map[string]string{
		instance + "user-data.txt": userData, instance + "cloud-config.txt": userData, instance + "obj.pkl": pickle,
		instance + "user-data.txt.i": "MIME-Version: 1.0\n\n" + userData, "var/lib/cloud/seed/nocloud/user-data": userData,
		"run/cloud-init/combined-cloud-config.json": `{"token: ` + s.token.String() + `\n"}`,
		"var/log/cloud-init-output.log":             "said " + s.token.String() + ", twice: " + s.token.String(),
	}
	for path, content := range files {
		s.write(path, content)
	}
	other := enrollapi.NewToken().String()
	s.write(instance+"scripts/runcmd", "echo "+other)

	said := s.seal()
	if !strings.Contains(said, "removed "+s.cfg.JoinFile) {
		t.Errorf("said %s", said)
	}
	if _, err := os.Stat(s.cfg.JoinFile); !os.IsNotExist(err) {
		t.Errorf("the join file: %v", err)
	}
	blank := s.token.ID + "." + strings.Repeat("x", len(s.token.Secret))
	for path, content := range files {
		want := strings.ReplaceAll(content, s.token.String(), blank)
		if got, _ := s.read(path); got != want || strings.Contains(said, s.token.Secret) {
			t.Errorf("%s:\n%q, want\n%q", path, got, want)
		}
	}
	if got, _ := s.read(instance + "scripts/runcmd"); got != "echo "+other {
		t.Errorf("another token: %q", got)
	}
	if again := s.seal(); !strings.Contains(again, "nothing to seal") {
		t.Errorf("sealed twice: %s", again)
	}
	// The agent and the doctor are content with a box that has no bundle any more.
	expect(t, checkup(t, s.cfg), "join bundle", CheckSkipped, "enrolled already")
}

// Where the secret can't be overwritten in its place, the file goes: cloud-init makes it anew from its source. But never
// its source.
func TestSealWhatIsEncoded(t *testing.T) {
	s := newSealed(t)
	const instance = "var/lib/cloud/instances/box-1/"
	text := "#cloud-config\n# " + s.token.String() + "\n"
	lines := base64.StdEncoding.EncodeToString([]byte("any" + text))
	gone := map[string]string{
		instance + "user-data.txt":   zipped(t, text),
		instance + "obj.pkl":         "\x80\x04" + zipped(t, text) + "more",
		instance + "user-data.txt.i": lines[:20] + "\n" + lines[20:41] + "\r\n" + lines[41:],
	}
	kept := map[string]string{
		instance + "vendor-data.txt": zipped(t, "nothing in it"), instance + "sem/x": base64.StdEncoding.EncodeToString([]byte("nor here " + s.token.ID)),
	}
	for _, files := range []map[string]string{gone, kept} {
		for path, content := range files {
			s.write(path, content)
		}
	}
	for before := range 3 { // wherever in a group of three bytes it begins
		s.write(instance+"part-"+strings.Repeat("i", before+1), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("-", before)+s.token.String())))
	}
	s.seal()
	for path := range gone {
		if got, there := s.read(path); there {
			t.Errorf("%s is there: %q", path, got)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(s.root, instance, "part-*")); len(left) > 0 {
		t.Errorf("not found out: %v", left)
	}
	for path, content := range kept {
		if got, _ := s.read(path); got != content {
			t.Errorf("%s: %q", path, got)
		}
	}

	s.write("var/lib/cloud/seed/nocloud/user-data", zipped(t, text))
	if _, err := Seal(s.cfg, s.root); err == nil || !strings.Contains(err.Error(), "by hand") {
		t.Errorf("%v", err)
	}
	if _, there := s.read("var/lib/cloud/seed/nocloud/user-data"); !there {
		t.Error("the seed is gone: cloud-init would take the box for another")
	}
}

// A new bundle lets a node in again that was removed: it is not what let the box in.
func TestSealLeavesANewBundle(t *testing.T) {
	s := newSealed(t)
	data, err := os.ReadFile(s.cfg.JoinFile)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.ReplaceAll(string(data), s.token.String(), enrollapi.NewToken().String())
	for _, path := range []string{s.cfg.JoinFile, filepath.Join(s.root, credstoreBundle)} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(other), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if said := s.seal(); strings.Count(said, "left") != 2 {
		t.Errorf("said %s", said)
	}
	if got, err := os.ReadFile(s.cfg.JoinFile); string(got) != other {
		t.Errorf("%v: %s", err, got)
	}
	s.write(credstoreBundle, string(data))
	s.seal()
	if _, there := s.read(credstoreBundle); there {
		t.Error("the bundle in the credential store is there still")
	}
}

// Until the identity is on disk the secret is all that the box has.
func TestSealBeforeTheBoxIsEnrolled(t *testing.T) {
	s := newShore(t)
	cfg := s.node()
	root := t.TempDir()
	if _, err := Seal(cfg, root); err == nil || !strings.Contains(err.Error(), "not enrolled") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(cfg.JoinFile); err != nil {
		t.Error(err)
	}
}

func TestBundleFromACredential(t *testing.T) {
	cfg := config.DefaultAgent()
	cfg.JoinFile = filepath.Join(t.TempDir(), "join.yaml")
	credentials := t.TempDir()
	if _, _, err := findBundle(cfg, credentials); err == nil || !strings.Contains(err.Error(), cfg.JoinFile) {
		t.Errorf("%v", err)
	}
	bundle := func(tenant string) []byte {
		return []byte("apiVersion: mooring.dev/v1alpha1\nkind: JoinBundle\nendpoint: edge.example:443\ntenant: " + tenant + "\ntoken: " +
			enrollapi.NewToken().String() + "\ncaCertHashes: [sha256:" + strings.Repeat("ab", 32) + "]\n")
	}
	path := filepath.Join(credentials, "mooring.join")
	if err := os.WriteFile(path, bundle("from-credential"), 0o400); err != nil {
		t.Fatal(err)
	}
	if b, from, err := findBundle(cfg, credentials); err != nil || b.Tenant != "from-credential" || from != path {
		t.Errorf("%+v from %s, %v", b, from, err)
	}
	if err := os.WriteFile(cfg.JoinFile, bundle("from-file"), 0o400); err != nil {
		t.Fatal(err)
	}
	if b, from, err := findBundle(cfg, credentials); err != nil || b.Tenant != "from-file" || from != cfg.JoinFile {
		t.Errorf("%+v from %s, %v", b, from, err)
	}
	if err := os.WriteFile(cfg.JoinFile, []byte("torn"), 0o400); err != nil {
		t.Fatal(err)
	}
	if _, _, err := findBundle(cfg, credentials); err == nil { // a person's mistake shows, and is not passed over
		t.Error("a bad file was passed over")
	}
}

// FuzzSecrets: whatever is in a file, what is found is a secret of the token, whole, and nothing else is overwritten.
func FuzzSecrets(f *testing.F) {
	token := enrollapi.NewToken()
	for _, s := range []string{"", token.ID + ".", token.String(), "a" + token.String() + token.String(), "\x1f\x8b\x08" + token.String()} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, at := range secrets(data, token.ID) {
			if got := string(data[at-len(token.ID)-1 : at]); got != token.ID+"." {
				t.Fatalf("a secret at %d, after %q", at, got)
			}
			if _, err := enrollapi.ParseToken(token.ID + "." + string(data[at:at+enrollapi.TokenSecretLen])); err != nil {
				t.Fatal(err)
			}
		}
		holdsEncoded(data, token.ID)
	})
}
