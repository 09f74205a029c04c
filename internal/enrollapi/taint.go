package enrollapi

import (
	"fmt"
	"strings"
)

// ParseTaint reads kubectl's form: key=value:Effect or key:Effect. It checks the form alone.
func ParseTaint(s string) (Taint, error) {
	keyValue, effect, ok := strings.Cut(s, ":")
	if !ok || keyValue == "" || effect == "" {
		return Taint{}, fmt.Errorf("malformed taint %q: want key=value:Effect, e.g. edge=true:NoSchedule", s)
	}
	key, value, _ := strings.Cut(keyValue, "=")
	return Taint{Key: key, Value: value, Effect: effect}, nil
}
