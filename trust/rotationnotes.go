package trust

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"time"
)

// rotationFile holds what is good to know of a rotation and can't be read off the roots.
const rotationFile = "rotation.json"

// rotationNotes is its content. How far a rotation has come is told by which files of roots there are, and by nothing else; notes that are
// lost, or older than those, cost patience and never trust: a root is published longer then, or used later.
type rotationNotes struct {
	Automatic   bool      `json:"automatic"`
	Since       time.Time `json:"since,omitzero"`     // of the phase
	Published   time.Time `json:"published,omitzero"` // the next root
	Activated   time.Time `json:"activated,omitzero"` // the present root
	PausedUntil time.Time `json:"paused_until,omitzero"`
	Retires     time.Time `json:"retires,omitzero"`
	RetiresOf   string    `json:"retires_of,omitempty"` // the fingerprint of the root that Retires is of
}

// note changes the notes of a state, and writes them down.
func (a *Authority) note(s *authorityState, change func(*rotationNotes)) {
	change(&s.notes)
	data, err := json.MarshalIndent(s.notes, "", "  ")
	if err == nil {
		err = a.write(rotationFile, data, replaceFile)
	}
	if err != nil {
		a.cfg.Log.Warn("notes on the rotation of the root not kept on disk", "file", a.path(rotationFile), "error", err)
	}
}

// loadNotes reads the notes; none, if they can't be read.
func (a *Authority) loadNotes() rotationNotes {
	var n rotationNotes
	data, err := readSecret(a.path(rotationFile))
	if errors.Is(err, fs.ErrNotExist) {
		return rotationNotes{}
	}
	if err == nil {
		err = json.Unmarshal(data, &n)
	}
	if err != nil {
		a.cfg.Log.Warn("notes on the rotation of the root can't be read; going on without", "file", a.path(rotationFile), "error", err)
		return rotationNotes{}
	}
	return n
}

func fingerprintText(c *x509.Certificate) string {
	sum := Fingerprint(c)
	return hex.EncodeToString(sum[:])
}
