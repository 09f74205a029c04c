package egress

import "context"

// Open returns how many dials are being answered or carried.
func (s *Server) Open() int { return s.open.N() }

// WaitIdle returns when no dial is being answered or carried, or ctx has ended.
func (s *Server) WaitIdle(ctx context.Context) { s.open.WaitIdle(ctx) }
