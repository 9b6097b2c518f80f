package conns

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"
)

func TestHandlers_AreWaitedForAndNoMoreBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h Handlers
		ran := 0
		slow := h.Counted(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			time.Sleep(time.Second)
			ran++
		}))
		ask := func() int {
			w := httptest.NewRecorder()
			slow.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
			return w.Code
		}
		go ask()
		synctest.Wait()
		h.Wait()
		if ran != 1 {
			t.Error("a handler is not waited for")
		}
		if code := ask(); ran != 1 || code != http.StatusServiceUnavailable {
			t.Errorf("afterwards: %d, %d ran", code, ran)
		}
	})
}
