package tenant

// Owner is an object of a management cluster, or a file, that a tenant was made for, and goes with.
type Owner struct {
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// UID tells the object from another of the same name.
	UID string `json:"uid,omitempty"`
}

// String names it for people; empty for the zero Owner.
func (o Owner) String() string {
	if o == (Owner{}) {
		return ""
	}
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}
