//go:build unix && !linux

package pgtest

import "syscall"

// attributes has a program of PostgreSQL run as the owner, out of the reach of a
// terminal's Ctrl-C, which would take it from the tests before they end.
func attributes(o *owner) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if o != nil {
		attr.Credential = &syscall.Credential{Uid: uint32(o.uid), Gid: uint32(o.gid)}
	}
	return attr
}
