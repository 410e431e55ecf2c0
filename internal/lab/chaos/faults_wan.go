package chaos

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/lab"
	"github.com/isthmus-mesh/isthmus/internal/wan"
)

func wanKinds() []kind {
	// between makes a kind of what lies between the caller's cluster and the victim: both ways, or one.
	between := func(name, words string, oneWay bool, change func(*wan.Link)) kind {
		return kind{name: name, wan: true, draw: func(s scene) fault {
			there, back := worse{home, s.victim, change}, worse{s.victim, home, change}
			if !oneWay {
				return fault{what: fmt.Sprintf("%s: %s-%s (%s)", name, home, s.victim, words), links: []worse{there, back}}
			}
			one := []worse{there, back}[s.luck.IntN(2)]
			return fault{what: fmt.Sprintf("%s: %s>%s (%s)", name, one.from, one.to, words), links: []worse{one}}
		}}
	}
	down := func(l *wan.Link) { l.Down = true }
	return []kind{
		between("black hole", "down", false, down),
		between("one-way partition", "down", true, down),
		between("loss", "15%", false, func(l *wan.Link) { l.Loss = 0.15 }),
		between("one-way loss", "30%", true, func(l *wan.Link) { l.Loss = 0.3 }),
		between("delay", "150ms", false, func(l *wan.Link) { l.Delay = 150 * time.Millisecond }),
		between("jitter", "~40ms", false, func(l *wan.Link) { l.Jitter = 40 * time.Millisecond }),
		between("reorder", "10%", false, func(l *wan.Link) { l.Reorder = 0.1 }),
		between("duplicate", "5%", false, func(l *wan.Link) { l.Duplicate = 0.05 }),
		between("slow link", "2mbit", false, func(l *wan.Link) { l.Rate = 2e6 }),
		between("no UDP", "noudp", false, func(l *wan.Link) { l.NoUDP = true }),
		{name: "isolation", wan: true, draw: func(s scene) fault {
			f := fault{what: "isolation: " + s.victim}
			for _, peer := range []string{home, s.other} {
				f.links = append(f.links, worse{s.victim, peer, down}, worse{peer, s.victim, down})
			}
			return f
		}},
		{name: "flapping link", wan: true, draw: func(s scene) fault {
			const half = 100 * time.Millisecond
			pair := []string{home, s.victim}
			return fault{what: fmt.Sprintf("flapping link: %s-%s (down each %s, for %s)", home, s.victim, 2*half, half), during: func(ctx context.Context, pg *lab.Playground) error {
				return flap(ctx, pg, pair, half)
			}}
		}},
	}
}

// flap cuts the link between two clusters off, and makes it again what it was, until ctx ends.
func flap(ctx context.Context, pg *lab.Playground, pair []string, half time.Duration) error {
	was, err := pg.Directions(ctx)
	if err != nil {
		return err
	}
	was = slices.DeleteFunc(was, func(d lab.Direction) bool { return !slices.Contains(pair, d.From) || !slices.Contains(pair, d.To) })
	cut := slices.Clone(was)
	for i := range cut {
		cut[i].Link = "down"
	}
	for {
		for _, links := range [][]lab.Direction{cut, was} {
			if _, err := pg.SetDirections(ctx, links); err != nil {
				return err
			}
			if err := sleep(ctx, half); err != nil {
				return err
			}
		}
	}
}

// worsened returns the links of a WAN with all that faults make worse of them.
func worsened(links []lab.Direction, faults []fault) ([]lab.Direction, error) {
	out := slices.Clone(links)
	for _, f := range faults {
		for _, w := range f.links {
			i := slices.IndexFunc(out, func(d lab.Direction) bool { return d.From == w.from && d.To == w.to })
			if i < 0 {
				return nil, fmt.Errorf("%s: no link from %s to %s", f.what, w.from, w.to)
			}
			l, err := wan.ParseLink(out[i].Link)
			if err != nil {
				return nil, err
			}
			w.change(&l)
			out[i].Link = l.String()
		}
	}
	return out, nil
}

// allPairs returns every link of a mesh, all alike.
func allPairs(spec lab.Spec, link string) ([]lab.Direction, error) {
	var names []string
	for _, c := range spec.Clusters {
		names = append(names, c.Name)
	}
	var out []lab.Direction
	for i, a := range names {
		for _, b := range names[i+1:] {
			d, err := lab.ParseDirections(strings.Join([]string{a, b}, "-")+"="+link, names)
			if err != nil {
				return nil, err
			}
			out = append(out, d...)
		}
	}
	return out, nil
}
