package agent_test

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestSignJWT: JWT-SVIDs are control's, for the program's own identity, whatever became of the connection in between.
func TestSignJWT(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newControl(t)
		c.token("sesame-1", true)
		p := c.run()
		p.ready(t, time.Minute)
		sign := func() {
			t.Helper()
			got, err := p.SignJWT(t.Context(), []string{"db", "cache"})
			if want := "spiffe://eu.example/ns/shop/sa/checkout for db,cache"; got != want || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		}
		sign()
		time.Sleep(time.Second) // the connection is still there
		sign()
		time.Sleep(5 * lifetime) // the SVID that it was opened with has ended
		synctest.Wait()
		sign()
		c.stop()
		if _, err := p.SignJWT(t.Context(), []string{"db"}); status.Code(err) != codes.Unavailable {
			t.Errorf("without control: %v", err)
		}
		c.start()
		time.Sleep(time.Minute)
		sign()
		p.stop()
		if _, err := p.SignJWT(t.Context(), []string{"db"}); err == nil {
			t.Error("after its end")
		}
	})
}
