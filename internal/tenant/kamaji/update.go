package kamaji

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// specOf is the object's spec, to be changed in place.
func specOf(obj *unstructured.Unstructured) (map[string]any, error) {
	spec, ok := obj.Object["spec"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s has no spec", client.ObjectKeyFromObject(obj))
	}
	return spec, nil
}

// annotate sets an annotation; an empty value removes it.
func annotate(obj *unstructured.Unstructured, key, value string) {
	all := obj.GetAnnotations()
	if all == nil {
		all = map[string]string{}
	}
	if value == "" {
		delete(all, key)
	} else {
		all[key] = value
	}
	if len(all) == 0 {
		all = nil
	}
	obj.SetAnnotations(all)
}

// setStatus writes want with this status, if anything is new, and tells it.
func (c *Controller) setStatus(ctx context.Context, obj, want *unstructured.Unstructured, s Status) error {
	text, err := s.encode()
	if err != nil {
		return err
	}
	annotate(want, AnnotationStatus, text)
	if err := c.update(ctx, obj, want); err != nil {
		return err
	}
	if readStatus(obj.GetAnnotations()) != s {
		c.say(want, s)
	}
	return nil
}

// update writes want if it differs from obj, and only over what obj was. The API server is asked to refuse fields that its
// schema does not have, rather than to drop them: a half of our part is worse than none.
func (c *Controller) update(ctx context.Context, obj, want *unstructured.Unstructured) error {
	if reflect.DeepEqual(obj.Object, want.Object) {
		return nil
	}
	want.SetResourceVersion(obj.GetResourceVersion())
	err := c.client.Update(ctx, want.DeepCopy(), client.FieldValidation("Strict"))
	switch {
	case err == nil:
		c.metrics.updates.Inc()
		return nil
	case apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "unknown field"):
		t := failed(reasonKamaji, "this version of Kamaji has no %s: upgrade it", unknownFields(err.Error()))
		t.err = err
		return t
	case apierrors.IsInvalid(err), apierrors.IsForbidden(err), apierrors.IsBadRequest(err):
		return failed(reasonRefused, "the management API server refused the change of the object: %v", err)
	}
	return err
}

// unknownFields finds the fields in a message of strict decoding.
func unknownFields(message string) string {
	var out []string
	for rest := message; ; {
		_, after, ok := strings.Cut(rest, `unknown field "`)
		if !ok {
			return strings.Join(out, ", ")
		}
		field, tail, _ := strings.Cut(after, `"`)
		out, rest = append(out, field), tail
	}
}

// say records an Event, and logs.
func (c *Controller) say(obj *unstructured.Unstructured, s Status) {
	kind := corev1.EventTypeNormal
	if s.State == StateFailed {
		kind = corev1.EventTypeWarning
	}
	c.cfg.Logger.Info("control plane", "object", client.ObjectKeyFromObject(obj), "tenant", s.Tenant, "reason", s.Reason, "message", s.Message)
	if c.events != nil {
		c.events.Eventf(obj, nil, kind, s.Reason, "Connect", "%.1000s", s.Message)
	}
}
