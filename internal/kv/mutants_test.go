//go:build mutants

package kv

import (
	"testing"

	"github.com/quorate/quorate/internal/env"
)

// TestMutant_FenceUnchecked shows that the rules of fences would see a fence that lets everybody through.
func TestMutant_FenceUnchecked(t *testing.T) {
	defer env.SetMutant(env.MutantNone)
	env.SetMutant(env.MutantFenceUnchecked)
	if err := fenceRules(t); err == nil {
		t.Error("not found")
	}
	env.SetMutant(env.MutantNone)
	if err := fenceRules(t); err != nil {
		t.Errorf("without the defect: %v", err)
	}
}
