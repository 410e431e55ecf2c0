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

// Fair is fair.
var Fair = fair

// Copies is how many copies are remembered.
func (d *Divider) Copies(name string) int { return len(d.limits[name].seen) }
