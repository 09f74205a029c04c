package files

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mooring-edge/mooring/pkg/health"
)

const condFiles = "TenantFiles"

// maxTold is how many tenants a condition's message tells of.
const maxTold = 5

// trouble is what is wrong with the directory as a whole.
type trouble struct {
	unreadable error
	empty      int // how many tenants were made by files, of which there is none now
}

// problem keeps and logs what is wrong with a tenant's file; nil: nothing. k.mu is held.
func (k *Keeper) problem(name string, s *state, err error) {
	switch {
	case err == nil && s.problem != nil:
		k.cfg.Logger.Info("tenant's file is applied again", "tenant", name)
	case err != nil && (s.problem == nil || s.problem.Error() != err.Error()):
		k.cfg.Logger.Warn("tenant's file is not applied; the tenant stays as it is", "tenant", name, "err", err)
	}
	s.problem = err
}

// report sets the condition by what is known. k.mu is held.
func (k *Keeper) report() {
	dir := k.cfg.Dir
	switch {
	case k.unreadable != nil:
		k.cfg.Health.Set(condFiles, health.False, "Unreadable", k.unreadable.Error()+": tenants stay as they are; looked at again every "+lookInterval.String())
		return
	case k.empty > 0:
		k.cfg.Health.Set(condFiles, health.False, "Empty", fmt.Sprintf("%s holds no tenant's file, but held %d: these tenants are kept; put the files back, or remove them with `broker tenant remove`", dir, k.empty))
		return
	}
	var told []string
	var wrong, waiting, done int
	for _, name := range slices.Sorted(maps.Keys(k.states)) {
		s := k.states[name]
		switch {
		case s.problem != nil:
			if wrong++; wrong <= maxTold {
				told = append(told, "tenant "+name+": "+s.problem.Error())
			}
		case s.done:
			done++
		case s.same > 0:
			waiting++
		}
	}
	if wrong > maxTold {
		told = append(told, fmt.Sprintf("and %d more: see the log", wrong-maxTold))
	}
	switch {
	case wrong > 0:
		k.cfg.Health.Set(condFiles, health.False, "NotApplied", strings.Join(told, "; "))
	case waiting > 0:
		k.cfg.Health.Set(condFiles, health.Unknown, "Applying", fmt.Sprintf("%d files of %s are about to be applied", waiting, dir))
	default:
		k.cfg.Health.Set(condFiles, health.True, "Applied", fmt.Sprintf("tenants of %d files in %s are as these say", done, dir))
	}
}
