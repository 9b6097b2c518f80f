package bench

import (
	"testing"
	"time"
)

func TestHistogram_QuantilesAreClose(t *testing.T) {
	var h Histogram
	for i := 1; i <= 100_000; i++ {
		h.Add(time.Duration(i) * time.Microsecond)
	}
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999} {
		got, want := float64(h.Quantile(q)), q*100_000
		if got < want*0.98 || got > want*1.02+1 {
			t.Errorf("quantile %v is %v, want about %v", q, got, want)
		}
	}
	if got := h.Quantile(1); got != 100_000 {
		t.Errorf("maximum is %d, want 100000", got)
	}
}

func TestBucket_BoundsHold(t *testing.T) {
	for _, us := range []int64{0, 1, 63, 64, 65, 127, 128, 1000, 1 << 20, 1<<40 + 12345} {
		if b := bucketOf(us); bucketTop(b) < us || b > 0 && bucketTop(b-1) >= us {
			t.Errorf("%d falls into bucket %d, which ends at %d", us, b, bucketTop(b))
		}
	}
}
