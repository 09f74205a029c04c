// Command podapp is what the end-to-end tests run in a pod: what an API server calls, and who calls the API server.
//
//	podapp serve       an admission webhook and an aggregated API on :8443, with the key pair in /tls; plain HTTP on :8080
//	podapp api PATH    one GET of an API server as a pod does it, at https://kubernetes.default.svc, by its ServiceAccount
//
// It is of no use by hand.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	err := errors.New("usage: podapp serve | podapp api PATH")
	switch {
	case len(os.Args) == 2 && os.Args[1] == "serve":
		err = serve()
	case len(os.Args) == 3 && os.Args[1] == "api":
		err = get(os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "podapp:", err)
		os.Exit(1)
	}
}

func serve() error {
	here := os.Getenv("NODE_NAME")
	mux := http.NewServeMux()
	mux.HandleFunc("POST /validate", func(w http.ResponseWriter, r *http.Request) { validate(w, r, here) })
	mux.HandleFunc("GET /apis/test.mooring.dev/v1alpha1", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{
			"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "test.mooring.dev/v1alpha1",
			"resources": []any{map[string]any{"name": "berths", "singularName": "berth", "namespaced": false, "kind": "Berth", "verbs": []string{"list"}}},
		})
	})
	mux.HandleFunc("GET /apis/test.mooring.dev/v1alpha1/berths", func(w http.ResponseWriter, r *http.Request) {
		answer(w, map[string]any{
			"kind": "BerthList", "apiVersion": "test.mooring.dev/v1alpha1", "metadata": map[string]any{},
			"items": []any{map[string]any{"kind": "Berth", "apiVersion": "test.mooring.dev/v1alpha1", "metadata": map[string]any{"name": here}, "asked": r.Header.Get("X-Remote-User")}},
		})
	})
	failed := make(chan error, 2)
	go func() { failed <- server(":8443", mux).ListenAndServeTLS("/tls/tls.crt", "/tls/tls.key") }()
	go func() {
		failed <- server(":8080", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s on %s\n", r.URL.Path, here)
		})).ListenAndServe()
	}()
	return <-failed
}

func server(addr string, h http.Handler) *http.Server {
	return &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 10 * time.Second}
}

// validate admits what does not say "forbidden".
func validate(w http.ResponseWriter, r *http.Request, here string) {
	var review struct {
		Request struct {
			UID    string          `json:"uid"`
			Object json.RawMessage `json:"object"`
		} `json:"request"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	response := map[string]any{"uid": review.Request.UID, "allowed": true}
	if strings.Contains(string(review.Request.Object), "forbidden") {
		response["allowed"] = false
		response["status"] = map[string]any{"message": "not while " + here + " is asked"}
	}
	answer(w, map[string]any{"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// get asks the API server for a path.
func get(path string) error {
	const account = "/var/run/secrets/kubernetes.io/serviceaccount/"
	token, err := os.ReadFile(account + "token")
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(account + "ca.crt")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return errors.New("the ServiceAccount's CA is none")
	}
	client := &http.Client{Timeout: 8 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	req, err := http.NewRequest(http.MethodGet, "https://kubernetes.default.svc"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
