package kamaji

import (
	"encoding/json"
	"errors"
	"fmt"
)

// States of a control plane.
const (
	StateReady   = "Ready"   // connected: all is in place
	StateWaiting = "Waiting" // on somebody else, and tried again
	StateFailed  = "Failed"  // until a user changes something
)

// Reasons, of the status and of Events.
const (
	reasonConnected      = "Connected"
	reasonDisconnected   = "Disconnected"
	reasonKonnectivity   = "KonnectivityAddon"
	reasonUserFlag       = "ConflictingFlag"
	reasonNamesTaken     = "NamesTaken"
	reasonKubernetes     = "UnsupportedKubernetes"
	reasonKamaji         = "UnsupportedKamaji"
	reasonRefused        = "UpdateRefused"
	reasonNoKubeconfig   = "AdminKubeconfigMissing"
	reasonNoCA           = "CAMissing"
	reasonUnreachable    = "APIServerUnreachable"
	reasonNameTaken      = "TenantNameTaken"
	reasonNameInvalid    = "TenantNameInvalid"
	reasonNameChanged    = "TenantNameChanged"
	reasonBadKubeconfig  = "AdminKubeconfigInvalid"
	reasonForeignObjects = "ObjectNameTaken"
)

// Status is what the annotation mooring.dev/status holds. It changes only when something does: no times, no counters.
type Status struct {
	State string `json:"state"`
	// Reason is one word, Message what is wrong and what to do, or what is there.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Tenant is the broker's name for the control plane.
	Tenant string `json:"tenant,omitempty"`
}

func (s Status) encode() (string, error) {
	out, err := json.Marshal(s)
	return string(out), err
}

func readStatus(annotations map[string]string) (s Status) {
	if json.Unmarshal([]byte(annotations[AnnotationStatus]), &s) != nil {
		return Status{}
	}
	return s
}

// trouble is an error that the object's status tells. A text of it must not change from one try to the next.
type trouble struct {
	state, reason, message string
	// undo has what is in the spec by our doing taken out: with it the control plane would be worse off.
	undo bool
	// err is for the log.
	err error
}

func (t *trouble) Error() string {
	if t.err != nil {
		return fmt.Sprintf("%s: %s: %v", t.reason, t.message, t.err)
	}
	return t.reason + ": " + t.message
}

func (t *trouble) Unwrap() error { return t.err }

func failed(reason, format string, args ...any) *trouble {
	return &trouble{state: StateFailed, reason: reason, message: fmt.Sprintf(format, args...)}
}

func waiting(reason, format string, args ...any) *trouble {
	return &trouble{state: StateWaiting, reason: reason, message: fmt.Sprintf(format, args...)}
}

// undoing is failed for what our part of the spec must not stand beside.
func undoing(reason, format string, args ...any) *trouble {
	t := failed(reason, format, args...)
	t.undo = true
	return t
}

// asTrouble finds the trouble in an error.
func asTrouble(err error) (*trouble, bool) { return errors.AsType[*trouble](err) }
