package control

import (
	"fmt"
	"net/http"
	"time"

	"github.com/isthmus-mesh/isthmus/api/admin"
	"github.com/isthmus-mesh/isthmus/topology"
)

// timelineAgo is how far back the timeline is told where nothing is said.
const timelineAgo = time.Hour

// getTimeline answers GET /v1/timeline?service=NAME.NAMESPACE[&since=DURATION|TIME].
func (c *Control) getTimeline(w http.ResponseWriter, r *http.Request) {
	service, err := topology.ParseServiceName(r.URL.Query().Get("service"))
	if err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("service: %w; want name.namespace", err))
		return
	}
	since, err := c.parseSince(r.URL.Query().Get("since"), timelineAgo)
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	answer(w, admin.Timeline{
		Service: service.String(), Cluster: c.cfg.Cluster.String(), Now: c.cfg.Now(), Since: since, Events: c.timeline.of(service.String(), since),
	})
}
