//go:build mutants

package env

import "sync/atomic"

var active atomic.Int64

// SetMutant switches one planted defect on, or all off with MutantNone. Only tests call it.
func SetMutant(m Mutation) { active.Store(int64(m)) }

// Mutant reports whether a planted defect is switched on.
func Mutant(m Mutation) bool { return active.Load() == int64(m) }
