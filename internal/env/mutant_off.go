//go:build !mutants

package env

// Mutant reports whether a planted defect is switched on. Without the build tag "mutants" it is constant false, and the
// compiler drops the defect.
func Mutant(Mutation) bool { return false }
