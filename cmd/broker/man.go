//go:build man

package main

import "github.com/mooring-edge/mooring/internal/manpages"

func init() { manpages.Main(newRoot()) }
