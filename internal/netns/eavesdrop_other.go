//go:build !linux

package netns

import "context"

// Eavesdropper listens on the wires of a network, where there are any: on Linux.
type Eavesdropper struct{}

// Heard is what an Eavesdropper has heard.
type Heard struct {
	Packets uint64         `json:"packets"`
	Clear   map[string]int `json:"clear"`
}

// Eavesdrop is not to be had here.
func (n Network) Eavesdrop(context.Context, string) (*Eavesdropper, error) { return nil, errLinux }

// Heard returns nothing.
func (e *Eavesdropper) Heard() Heard { return Heard{} }

// Close returns nothing.
func (e *Eavesdropper) Close() Heard { return Heard{} }
