package quota

import "time"

// Rate is what the bucket of key is filled with now.
func (l *Limiter) Rate(key Key, now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if b := l.buckets[key]; b != nil {
		return l.rate(b, now)
	}
	return l.rate(&bucket{}, now)
}

// Keys is how many keys are told apart.
func (l *Limiter) Keys() int { return len(l.buckets) }

// Fair is what each demand gets.
func Fair(demands []float64, rate float64) (shares []float64) {
	for _, d := range demands {
		shares = append(shares, fair(demands, d, rate))
	}
	return shares
}

// Copies is how many copies are remembered.
func (d *Divider) Copies(name string) int { return len(d.limits[name].seen) }
