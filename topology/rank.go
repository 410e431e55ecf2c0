package topology

func choose(s *Snapshot, q Query, load Load) (Plan, error) {
	_, _ = s, load
	return Plan{Query: q}, ErrNoCandidates
}

func (c Cause) words() string { return string(c) }
