//go:build !linux

package storage

func direct(fs FS) FS { return fs }
