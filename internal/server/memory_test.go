package server

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestMemory_SharesAreBounded(t *testing.T) {
	for _, c := range []struct {
		m    memory
		want int64
	}{{0, 1 << 30}, {64 << 30, 1 << 30}, {1 << 30, 128 << 20}, {64 << 20, 32 << 20}} {
		if got := c.m.share(8, 32<<20, 1<<30); got != c.want {
			t.Errorf("of %d bytes: %d, want %d", c.m, got, c.want)
		}
	}
}

func TestMemory_CollectorIsToldOfTheLimit(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	before := debug.SetMemoryLimit(math.MaxInt64)
	defer debug.SetMemoryLimit(before)
	stop := memory(10 << 30).limitGC()
	if got := debug.SetMemoryLimit(-1); got != 9<<30 {
		t.Errorf("the limit is %d", got)
	}
	stop()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("afterwards the limit is %d", got)
	}
	for m, want := range map[memory]int64{256 << 20: 192 << 20, 512 << 20: 384 << 20, 1 << 30: 896 << 20, 1280 << 20: 1152 << 20, 2 << 30: 2<<30 - (2<<30)/10} {
		if got := m.gcLimit(); got != want {
			t.Errorf("of %d bytes: %d, want %d", m, got, want)
		}
	}
	memory(0).limitGC()()
	if got := debug.SetMemoryLimit(-1); got != math.MaxInt64 {
		t.Errorf("without a limit it is %d", got)
	}
}

func TestMemory_WhatTheUserSetCounts(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "100MiB")
	before := debug.SetMemoryLimit(100 << 20)
	defer debug.SetMemoryLimit(before)
	m := ownMemory()
	if m != 100<<20 {
		t.Errorf("the node may take %d bytes", m)
	}
	memory(10 << 30).limitGC()()
	if got := debug.SetMemoryLimit(-1); got != 100<<20 {
		t.Errorf("the limit is %d", got)
	}
}
