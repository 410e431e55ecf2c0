package federation

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// How long a MemberRoot is good for, and how much of that must be left before the next epoch is made.
const (
	RootLifetime = 90 * 24 * time.Hour
	rootRenewal  = RootLifetime / 3
)

// The files of Keys, all of mode 0600. The signing key has its epoch in its name, so that writing the MemberRoot is the one
// step that moves from one epoch to the next.
const (
	rootKeyFile    = "root.key"
	busKeyFile     = "bus.key"
	memberRootFile = "member-root.pb"
	maxKeyFile     = 4 << 10
)

// Keys are what a member signs with: the federation root key, whose fingerprint peers pin; the signing key of the present
// epoch; and the bus key, by which it is known on the bus. They live in a folder of their own. Safe for concurrent use.
//
// The root key may be taken away once member-root.pb exists, and kept offline: the member then runs until that MemberRoot ends.
type Keys struct {
	dir         string
	fingerprint Fingerprint
	bus         ed25519.PrivateKey

	mu   sync.Mutex
	root ed25519.PrivateKey // guarded by mu; nil while it is kept offline
	now  statement          // guarded by mu; zero before the first
}

// statement is a MemberRoot of our own, and the key that signs Heads under it.
type statement struct {
	record  *record
	content memberRoot
	signing ed25519.PrivateKey
}

// OpenKeys reads the keys in dir, which is made if it isn't there, and makes them the first time.
func OpenKeys(dir string) (*Keys, error) {
	k, err := openKeys(dir)
	if err != nil {
		return nil, fmt.Errorf("federation: keys in %s: %w", dir, err)
	}
	return k, nil
}

func openKeys(dir string) (*Keys, error) {
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	k := &Keys{dir: dir}
	// The bus key is made before the root key, so that a root key without a bus key is a loss and not a beginning.
	root, rootErr := readKey(dir, rootKeyFile)
	bus, busErr := readKey(dir, busKeyFile)
	stated, statedErr := k.readStatement()
	for _, err := range []error{rootErr, busErr, statedErr} {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	begun := rootErr == nil || statedErr == nil
	if begun && busErr != nil {
		return nil, fmt.Errorf("%s is missing and the others are not: put it back, or remove the folder and be introduced to every peer anew: %w", busKeyFile, busErr)
	}
	var err error
	if busErr != nil {
		if bus, err = makeKey(dir, busKeyFile); err != nil {
			return nil, err
		}
	}
	if !begun {
		if root, err = makeKey(dir, rootKeyFile); err != nil {
			return nil, err
		}
	}
	k.root, k.bus = root, bus
	if statedErr == nil {
		k.now = stated
		k.fingerprint = FingerprintOf(stated.content.rootKey)
	}
	if root != nil {
		k.fingerprint = FingerprintOf(public(root))
		if statedErr == nil && !stated.content.rootKey.Equal(public(root)) {
			return nil, fmt.Errorf("%s was not signed by %s", memberRootFile, rootKeyFile)
		}
	}
	return k, nil
}

// Fingerprint returns what peers pin.
func (k *Keys) Fingerprint() Fingerprint { return k.fingerprint }

// BusKey returns the public bus key as a NATS user key ("U…"), as ClusterPeer.spec.bus.key has it.
func (k *Keys) BusKey() string { return encodeUserKey(public(k.bus)) }

// BusPrivateKey returns the bus key. The own bus server and the clients of other servers prove themselves by it.
func (k *Keys) BusPrivateKey() ed25519.PrivateKey { return k.bus }

// MemberRoot says of the present MemberRoot which epoch it is of, and how long it lasts. Its end is zero before the first is made.
func (k *Keys) MemberRoot() (epoch uint64, begins, ends time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.now.record == nil {
		return 0, time.Time{}, time.Time{}
	}
	return k.now.content.epoch, k.now.content.notAfter.Add(-RootLifetime), k.now.content.notAfter
}

// Rotate begins the next epoch with a new signing key. Peers refuse the old key once they have heard of it.
func (k *Keys) Rotate(domain spiffeid.TrustDomain, now time.Time) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.nextEpoch(domain, now); err != nil {
		return fmt.Errorf("federation: rotate: %w", err)
	}
	return nil
}

// statement returns the present MemberRoot, after making a new one where there is none, or the old one is about to end.
// An old one that can't be renewed, because the root key is offline, is returned while it lasts.
func (k *Keys) statement(domain spiffeid.TrustDomain, now time.Time) (statement, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	usable := k.now.record != nil && k.now.content.domain == domain && now.Before(k.now.content.notAfter)
	if usable && now.Add(rootRenewal).Before(k.now.content.notAfter) {
		return k.now, nil
	}
	if err := k.nextEpoch(domain, now); err != nil && !usable {
		return statement{}, fmt.Errorf("federation: next epoch: %w", err)
	}
	return k.now, nil
}

// present returns the MemberRoot in force, and makes none.
func (k *Keys) present() statement {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

// nextEpoch makes a signing key and a MemberRoot. Writing the latter is the step that counts. The caller holds k.mu.
func (k *Keys) nextEpoch(domain spiffeid.TrustDomain, now time.Time) error {
	if k.root == nil {
		return errors.New("the root key is not here: sign a new MemberRoot where it is kept")
	}
	content := memberRoot{domain: domain, epoch: k.now.content.epoch + 1, issued: now, notAfter: now.Add(RootLifetime), rootKey: public(k.root)}
	signing, err := makeKey(k.dir, signingKeyFile(content.epoch))
	if err != nil {
		return err
	}
	content.signingKeys = []ed25519.PublicKey{public(signing)}
	r, err := content.seal(k.root)
	if err != nil {
		return err
	}
	if err := writeFile(k.dir, memberRootFile, r.raw); err != nil {
		return err
	}
	if k.now.record != nil {
		// Nothing depends on it: a key of an epoch that is over signs nothing that anybody takes.
		_ = os.Remove(filepath.Join(k.dir, signingKeyFile(k.now.content.epoch)))
	}
	k.now = statement{record: r, content: content, signing: signing}
	return nil
}

func (k *Keys) readStatement() (statement, error) {
	raw, err := readSmall(k.dir, memberRootFile, MaxMessage)
	if err != nil {
		return statement{}, err
	}
	r, err := open(raw)
	if err != nil {
		return statement{}, fmt.Errorf("%s: %w", memberRootFile, err)
	}
	content, err := decodeMemberRoot(r)
	if err != nil {
		return statement{}, fmt.Errorf("%s: %w", memberRootFile, err)
	}
	if !r.verify(content.rootKey) {
		return statement{}, fmt.Errorf("%s: signature does not fit", memberRootFile)
	}
	signing, err := readKey(k.dir, signingKeyFile(content.epoch))
	if err != nil {
		return statement{}, fmt.Errorf("signing key of epoch %d: %v", content.epoch, err) //nolint:errorlint // not there is not "never made"
	}
	for _, key := range content.signingKeys {
		if key.Equal(public(signing)) {
			return statement{record: r, content: content, signing: signing}, nil
		}
	}
	return statement{}, fmt.Errorf("%s names another key than %s", memberRootFile, signingKeyFile(content.epoch))
}

func signingKeyFile(epoch uint64) string { return fmt.Sprintf("signing-%d.key", epoch) }

func public(key ed25519.PrivateKey) ed25519.PublicKey {
	p, _ := key.Public().(ed25519.PublicKey)
	return p
}

func makeKey(dir, name string) (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writeFile(dir, name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func readKey(dir, name string) (ed25519.PrivateKey, error) {
	data, err := readSmall(dir, name, maxKeyFile)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %#o): chmod 600, and rotate it if somebody may have", name, info.Mode().Perm())
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		return nil, fmt.Errorf("%s: want one PEM block, PRIVATE KEY", name)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: want an Ed25519 key, got %T", name, parsed)
	}
	return key, nil
}

// encodeUserKey spells a public key as NATS does (https://docs.nats.io, NKeys): base32 of a prefix byte, the key and a CRC-16
// (XMODEM, little-endian). Written out here because only natsbus may import NATS.
func encodeUserKey(key ed25519.PublicKey) string {
	const prefixUser = 20 << 3 // 'U'
	raw := append([]byte{prefixUser}, key...)
	var crc uint16
	for _, b := range raw {
		crc ^= uint16(b) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			crc <<= 1
			if carry {
				crc ^= 0x1021
			}
		}
	}
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(binary.LittleEndian.AppendUint16(raw, crc))
}
