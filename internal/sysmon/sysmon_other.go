//go:build !linux

package sysmon

import "errors"

// Calm is for Linux alone.
func Calm() error { return errors.ErrUnsupported }
