package kubetest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

const maxBody = 1 << 20

// ServeHTTP is the API.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	user, ok := s.user(r)
	if !ok {
		status(w, http.StatusUnauthorized, "Unauthorized", "the token is not known")
		return
	}
	if r.URL.Path == "/version" {
		answer(w, http.StatusOK, map[string]any{"gitVersion": "v0.0.0-kubetest", "platform": s.Address()})
		return
	}
	if r.URL.Query().Get("watch") == "true" {
		s.watch(w, r)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		return
	}
	var o map[string]any
	if r.Method == http.MethodPost || r.Method == http.MethodPut {
		if o, err = decode(body); err != nil {
			status(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, fmt.Sprintf("%s %s by %s", r.Method, r.URL.Path, user))
	if !s.policies && strings.Contains(r.URL.Path, "validatingadmission") {
		http.NotFound(w, r) // as for a kind that is not served: no Status
		return
	}
	switch r.Method {
	case http.MethodGet:
		s.get(w, r)
	case http.MethodPost:
		s.post(w, r, user, o)
	case http.MethodPut:
		s.put(w, strings.TrimSuffix(r.URL.Path, "/approval"), o)
	case http.MethodDelete:
		s.remove(w, r.URL.Path)
	default:
		status(w, http.StatusMethodNotAllowed, "MethodNotAllowed", r.Method)
	}
}

var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, rbacv1.AddToScheme, certificatesv1.AddToScheme, admissionv1.AddToScheme, authenticationv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme).UniversalDeserializer()
}()

// decode reads an object in whichever form clients send it, protobuf as a rule.
func decode(body []byte) (map[string]any, error) {
	obj, kind, err := decoder.Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(*kind)
	text, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var o map[string]any
	err = json.Unmarshal(text, &o)
	return o, err
}

// lists are the collections that are listed as such; all else is an object.
var lists = map[string]string{"certificatesigningrequests": "CertificateSigningRequestList", "nodes": "NodeList", "secrets": "SecretList",
	"services": "ServiceList", "endpointslices": "EndpointSliceList", "servicecidrs": "ServiceCIDRList"}

func (s *Server) get(w http.ResponseWriter, r *http.Request) {
	if kind, ok := lists[path.Base(r.URL.Path)]; ok {
		items := []any{}
		for _, p := range slices.Sorted(maps.Keys(s.objects)) {
			if path.Dir(p) == r.URL.Path {
				items = append(items, s.objects[p])
			}
		}
		answer(w, http.StatusOK, map[string]any{
			"kind": kind, "apiVersion": apiVersion(r.URL.Path), "items": items, "metadata": map[string]any{"resourceVersion": fmt.Sprint(s.version)},
		})
		return
	}
	if o, ok := s.objects[r.URL.Path]; ok {
		answer(w, http.StatusOK, o)
		return
	}
	notFound(w, r.URL.Path)
}

func (s *Server) post(w http.ResponseWriter, r *http.Request, user string, o map[string]any) {
	if strings.HasSuffix(r.URL.Path, "/token") {
		s.token(w, r.URL.Path, o)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/tokenreviews") {
		spec, _ := o["spec"].(map[string]any)
		token, _ := spec["token"].(string)
		o["status"] = s.reviews[token]
		answer(w, http.StatusCreated, o)
		return
	}
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	p := r.URL.Path + "/" + name
	switch {
	case name == "":
		status(w, http.StatusUnprocessableEntity, "Invalid", "no name")
	case s.objects[p] != nil:
		status(w, http.StatusConflict, "AlreadyExists", p)
	case o["kind"] == "Secret" && o["type"] == "Opaque" && strings.HasPrefix(user, "system:serviceaccount:") && s.bounded():
		status(w, http.StatusUnprocessableEntity, "Invalid", "ValidatingAdmissionPolicy denied request")
	case isDryRun(r.URL.Query()):
		answer(w, http.StatusCreated, o)
	default:
		if s.signer != nil && r.URL.Path == requestsPath {
			s.sign(o)
		}
		answer(w, http.StatusCreated, s.store(p, o))
	}
}

// bounded tells whether some admission policy is bound. s.mu is held.
func (s *Server) bounded() bool {
	for p := range s.objects {
		if strings.Contains(p, "/validatingadmissionpolicybindings/") {
			return true
		}
	}
	return false
}

func (s *Server) put(w http.ResponseWriter, p string, o map[string]any) {
	was, ok := s.objects[p]
	if !ok {
		notFound(w, p)
		return
	}
	meta, _ := o["metadata"].(map[string]any)
	if v := meta["resourceVersion"]; v != nil && v != was["metadata"].(map[string]any)["resourceVersion"] {
		status(w, http.StatusConflict, "Conflict", p)
		return
	}
	answer(w, http.StatusOK, s.store(p, o))
}

func (s *Server) remove(w http.ResponseWriter, p string) {
	if s.objects[p] == nil {
		notFound(w, p)
		return
	}
	delete(s.objects, p)
	answer(w, http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
}

// token answers a TokenRequest for a ServiceAccount that is there.
func (s *Server) token(w http.ResponseWriter, p string, o map[string]any) {
	account := strings.TrimSuffix(p, "/token")
	if s.objects[account] == nil {
		notFound(w, account)
		return
	}
	life := time.Hour
	if spec, ok := o["spec"].(map[string]any); ok {
		if seconds, ok := spec["expirationSeconds"].(float64); ok {
			life = time.Duration(seconds) * time.Second
		}
	}
	part := strings.Split(account, "/") // /api/v1/namespaces/NS/serviceaccounts/NAME
	token := rand.Text()
	s.users[token] = "system:serviceaccount:" + part[4] + ":" + part[6]
	o["status"] = map[string]any{"token": token, "expirationTimestamp": time.Now().Add(min(life, s.tokenLife)).UTC().Format(time.RFC3339)}
	answer(w, http.StatusCreated, o)
}

// watch tells of no change: clients list.
func (s *Server) watch(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Has("sendInitialEvents") {
		status(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents is not understood")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	select {
	case <-r.Context().Done():
	case <-s.done:
	}
}

func apiVersion(p string) string {
	part := strings.Split(p, "/")
	if part[1] == "api" {
		return part[2]
	}
	return part[2] + "/" + part[3]
}

func notFound(w http.ResponseWriter, p string) {
	status(w, http.StatusNotFound, "NotFound", p+" is not there")
}

func status(w http.ResponseWriter, code int, reason, message string) {
	answer(w, code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}
