package join

import (
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/mooring-edge/mooring/internal/durable"
	"github.com/mooring-edge/mooring/internal/pki"
)

const maxKey = 16 << 10

// ErrKeyDamaged says that the node's key is there but can't be read as one, on a box that may have been
// enrolled with it. Nothing is made in its place: another key could not get the node's name back.
var ErrKeyDamaged = errors.New("the node's key is damaged")

// nodeKey returns the node's key, making it at the first call ever. When it returns, the key is on disk.
func (j *Joiner) nodeKey() (*ecdsa.PrivateKey, error) {
	key, err := j.loadNodeKey()
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	return j.makeKey(j.keyFile())
}

// loadNodeKey returns the node's key; fs.ErrNotExist if there is none and one may be made. Content that
// is no key on a box that was never enrolled is set aside, not removed.
func (j *Joiner) loadNodeKey() (*ecdsa.PrivateKey, error) {
	path := j.keyFile()
	key, err := readKey(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) || !damaged(err) {
		return key, err // a read error may pass: it must not cost the key
	}
	if _, statErr := os.Lstat(j.identityFile()); !errors.Is(statErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %v; restore %s from a backup, or run `edge-agent reset`, remove the node at the broker and enrol with a new token",
			ErrKeyDamaged, err, path)
	}
	aside := path + ".damaged-" + j.clock.Now().UTC().Format("20060102-150405")
	if err := os.Rename(path, aside); err != nil {
		return nil, fmt.Errorf("set the damaged key aside: %w", err)
	}
	j.cfg.Logger.Warn("the node's key was damaged and has been set aside; the node was not enrolled yet, so a new one is made", "err", err, "aside", aside)
	return nil, fs.ErrNotExist
}

// Fingerprint is the hash that the broker knows this box's key by; fs.ErrNotExist if there is no key yet.
func (j *Joiner) Fingerprint() (string, error) {
	key, err := readKey(j.keyFile())
	if err != nil {
		return "", err
	}
	return pki.SPKIHash(&key.PublicKey), nil
}

// errNoKey marks a file that was read and holds no key.
var errNoKey = errors.New("no key in it")

func damaged(err error) bool {
	return errors.Is(err, errNoKey) || errors.Is(err, durable.ErrTorn) || errors.Is(err, durable.ErrTooLarge)
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := durable.ReadFile(path, maxKey)
	if err != nil {
		return nil, err
	}
	key, err := pki.ParseKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, errNoKey, err)
	}
	return key, nil
}

// makeKey writes a new key to a path where there is none.
func (j *Joiner) makeKey(path string) (*ecdsa.PrivateKey, error) {
	pem, key, err := pki.MakeKeyPEM()
	if err != nil {
		return nil, err
	}
	return key, j.cfg.WriteFile(path, pem, 0o600)
}
