package bench

import "testing"

// TestSlot_KnownValues holds the values that the Redis Cluster specification and its clients give.
func TestSlot_KnownValues(t *testing.T) {
	for key, want := range map[string]int{"123456789": 0x31C3 & 16383, "foo": 12182, "bar": 5061, "": 0} {
		if got := slot(key); got != want {
			t.Errorf("slot of %q: got %d, want %d", key, got, want)
		}
	}
}
