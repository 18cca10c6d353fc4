//go:build !linux

package main

import "testing"

// memoryFolder returns a temporary folder.
func memoryFolder(t *testing.T) string { return t.TempDir() }
