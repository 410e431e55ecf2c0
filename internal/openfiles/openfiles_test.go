package openfiles_test

import (
	"testing"

	"github.com/isthmus-mesh/isthmus/internal/openfiles"
)

func TestShare(t *testing.T) {
	limit := openfiles.Limit()
	if limit == 0 {
		t.Skip("no limit is known here")
	}
	for _, c := range []struct{ in, most, want int }{
		{2, 1, 1}, {2, limit, limit / 2}, {1, 2 * limit, limit}, {2 * limit, limit, 1},
	} {
		if got := openfiles.Share(c.in, c.most); got != c.want {
			t.Errorf("one in %d of %d, at most %d: %d, want %d", c.in, limit, c.most, got, c.want)
		}
	}
}
