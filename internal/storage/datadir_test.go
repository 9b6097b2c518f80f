package storage

import "testing"

func TestDir_DamageFoundMeanwhileStaysMarked(t *testing.T) {
	fs := MemFS()
	open := func() *Dir {
		d, err := OpenDir(fs, "data", shop, LogConfig{}, StoreConfig{})
		must(t, err)
		return d
	}
	d := open()
	must(t, d.MarkDamaged())
	must(t, d.Close())
	// It has been emptied, and is found to be damaged again before the log has noted the first time.
	d = open()
	if !d.StoreLost {
		t.Fatalf("a marked store was opened")
	}
	must(t, d.MarkDamaged())
	must(t, d.Repaired())
	must(t, d.Close())
	d = open()
	if !d.StoreLost {
		t.Errorf("the second damage is forgotten")
	}
	must(t, d.Repaired())
	must(t, d.Close())
	if d = open(); d.StoreLost {
		t.Errorf("a repaired store was emptied")
	}
	must(t, d.Close())
}
