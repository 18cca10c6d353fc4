package posthorn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/musehub/posthorn/internal/secretbox"
	"github.com/musehub/posthorn/signature"
)

// keyCheck is the setting that tells whether a node's keys are those of the store: a text encrypted with them.
const keyCheck = "secret_key_check"

// openBox returns the box for a store's secrets, or an error if the keys don't fit what is in it.
func openBox(store Store, keys []string) (*secretbox.Box, error) {
	ctx := context.Background()
	if len(keys) == 0 {
		keeper, ok := store.(SecretKeeper)
		if !ok {
			return nil, Errorf(CodeInvalid, "Config.SecretKeys is empty and this store keeps no keys: set one, as made by `posthorn keys generate`")
		}
		var err error
		if keys, err = keeper.SecretKeys(secretbox.GenerateKey); err != nil {
			return nil, err
		}
	}
	box, err := secretbox.New(keys)
	if err != nil {
		return nil, Errorf(CodeInvalid, "%w", err)
	}
	initial, err := box.SealFor(keyCheck, "posthorn")
	if err != nil {
		return nil, Errorf(CodeInternal, "encrypt with the secret keys: %w", err)
	}
	check, err := store.Setting(ctx, keyCheck, initial)
	if err != nil {
		return nil, err
	}
	if _, _, err := box.OpenFor(keyCheck, check); err != nil {
		return nil, Errorf(CodeInvalid, "the secret keys do not fit this database: none of them decrypts its secrets. "+
			"Start with the keys that it was made with (POSTHORN_SECRET_KEYS, Config.SecretKeys or its key file); "+
			"to change keys, put the new one first and keep the old ones behind it")
	}
	return box, nil
}

// SecretKind says how a secret signs.
type SecretKind string

const (
	// SecretHMAC is a secret that receivers have as well. It signs X-MuseHub-Signature, and version v1 of Standard Webhooks.
	SecretHMAC SecretKind = "hmac"
	// SecretEd25519 is a private key, whsk_…, of which receivers have the public one. It signs version v1a of Standard
	// Webhooks.
	SecretEd25519 SecretKind = "ed25519"
)

func kindOf(secret string) SecretKind {
	if strings.HasPrefix(secret, "whsk_") {
		return SecretEd25519
	}
	return SecretHMAC
}

// Secret is a signing secret as it is stored. Of those that were imported, only Sealed is known at first.
type Secret struct {
	ID        string     `json:"id,omitempty"`
	Kind      SecretKind `json:"kind,omitempty"`
	Sealed    string     `json:"sealed"` // ciphertext, bound to the webhook; neither is sure in rows that were imported
	CreatedAt time.Time  `json:"createdAt,omitzero"`
	ExpiresAt time.Time  `json:"expiresAt,omitzero"` // when it stops signing; zero: never
}

func (s Secret) live(now time.Time) bool { return s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt) }

// PublicKey is what receivers verify the signatures of an Ed25519 key with.
type PublicKey struct {
	Secret        // that it belongs to
	Key    string // whpk_…
}

// RotateSecret puts a new secret in front of those that a webhook has, which go on signing for the overlap, and with an
// overlap of zero stop at once: as soon as it has returned, as with UpdateWebhook. It is any text, as
// [signature.GenerateSecret] makes it, or an Ed25519 key, as [signature.GeneratePrivateKey] makes it.
//
// CodeConflict when [MaxSecrets] sign already.
func (d *Dispatcher) RotateSecret(ctx context.Context, repoID, webhookID, secret string, overlap time.Duration) (Secret, error) {
	if overlap < 0 {
		return Secret{}, invalid("overlap", "it is negative")
	}
	w, err := d.changeSecrets(ctx, "secret.rotate", repoID, webhookID, "", func(w *Webhook) error {
		d.expireSecrets(w, overlap)
		return d.addSecret(w, secret)
	})
	if err != nil {
		return Secret{}, err
	}
	return w.Secrets[0], nil
}

// RevokeSecret makes one secret stop signing at once. The last one that signs for good can't be revoked, only replaced by
// [Dispatcher.RotateSecret] without an overlap: CodeConflict, so that nothing is unsigned by mistake.
func (d *Dispatcher) RevokeSecret(ctx context.Context, repoID, webhookID, secretID string) error {
	_, err := d.changeSecrets(ctx, "secret.revoke", repoID, webhookID, secretID, func(w *Webhook) error {
		i := slices.IndexFunc(w.Secrets, func(s Secret) bool { return s.ID == secretID })
		if i < 0 {
			return Errorf(CodeNotFound, "Secret not found")
		}
		w.Secrets = slices.Delete(w.Secrets, i, i+1)
		if !slices.ContainsFunc(w.Secrets, func(s Secret) bool { return s.ExpiresAt.IsZero() }) {
			return Errorf(CodeConflict, "this is the secret that goes on signing: put a new one in its place, with an overlap of 0 if "+
				"it has to stop at once. To send unsigned from now on, change the webhook's secret to the empty string")
		}
		return nil
	})
	return err
}

// changeSecrets changes the secrets of a webhook, of which change sees those that sign.
func (d *Dispatcher) changeSecrets(
	ctx context.Context, action, repoID, id, detail string, change func(*Webhook) error,
) (Webhook, error) {
	if err := d.checkRepo(ctx, repoID); err != nil {
		return Webhook{}, err
	}
	writing := d.audited(ctx, AuditEntry{Action: action, RepoID: repoID, Subject: id, Detail: detail})
	w, err := d.store.UpdateWebhook(writing, repoID, id, func(w *Webhook) error {
		if err := d.tidySecrets(w); err != nil {
			return err
		}
		w.UpdatedAt = d.clock.now()
		return change(w)
	})
	if err == nil {
		d.subscriptions.invalidate(repoID, w.Seq)
	}
	return w, err
}

// Secrets returns the secrets that sign a webhook's deliveries, the newest first.
func (d *Dispatcher) Secrets(ctx context.Context, repoID, webhookID string) ([]Secret, error) {
	w, err := d.Webhook(ctx, repoID, webhookID)
	if err == nil && slices.ContainsFunc(w.Secrets, func(s Secret) bool { return s.ID == "" }) {
		w, err = d.resealWebhook(ctx, w)
	}
	if err != nil {
		return nil, err
	}
	now := d.clock.now()
	return slices.DeleteFunc(w.Secrets, func(s Secret) bool { return !s.live(now) }), nil
}

// PublicKeys returns the public keys that verify a webhook's deliveries, the newest first: one for each of its secrets that
// is an Ed25519 key.
func (d *Dispatcher) PublicKeys(ctx context.Context, repoID, webhookID string) ([]PublicKey, error) {
	secrets, err := d.Secrets(ctx, repoID, webhookID)
	if err != nil {
		return nil, err
	}
	var keys []PublicKey
	for _, s := range secrets {
		if s.Kind != SecretEd25519 {
			continue
		}
		// It is not stored beside the private key, where it could be exchanged unnoticed.
		private, _, err := d.box.OpenImported(webhookID, s.Sealed)
		if err != nil {
			return nil, Errorf(CodeUnavailable, "%w", secretError("signing secret", err))
		}
		public, err := signature.PublicKey(private)
		if err != nil {
			return nil, Errorf(CodeInternal, "the public key of secret %s: %w", s.ID, err)
		}
		keys = append(keys, PublicKey{s, public})
	}
	return keys, nil
}

// expireSecrets has the secrets of a webhook stop signing when the overlap is over, at the latest. Those that can't be read go at
// once: as long as they are there nothing is sent, and whoever sets a new one wants that to end.
func (d *Dispatcher) expireSecrets(w *Webhook, overlap time.Duration) {
	until := w.UpdatedAt.Add(overlap)
	w.Secrets = slices.DeleteFunc(w.Secrets, func(s Secret) bool {
		_, _, err := d.box.OpenImported(w.ID, s.Sealed)
		return err != nil
	})
	for i, s := range w.Secrets {
		if s.ExpiresAt.IsZero() || s.ExpiresAt.After(until) {
			w.Secrets[i].ExpiresAt = until
		}
	}
	w.Secrets = slices.DeleteFunc(w.Secrets, func(s Secret) bool { return !s.live(w.UpdatedAt) })
}

// addSecret puts a secret in front of those that the webhook has, which all sign.
func (d *Dispatcher) addSecret(w *Webhook, secret string) error {
	if w.Polled {
		return invalid("secret", "the webhook is polled: there is nothing to sign")
	}
	if len(secret) > MaxSecretLength || !utf8.ValidString(secret) {
		return invalid("secret", "it is longer than %d bytes, or not UTF-8", MaxSecretLength)
	}
	if _, err := signature.NewSigner(secret); err != nil {
		return &Error{Code: CodeInvalid, Field: "secret", Message: err.Error(), Err: err}
	}
	if len(w.Secrets) >= MaxSecrets {
		return &Error{Code: CodeConflict, Field: "secret", Message: fmt.Sprintf(
			"%d secrets sign already: revoke one, wait until one expires, or replace all without an overlap", MaxSecrets)}
	}
	sealed, err := d.seal(w.ID, secret)
	if err != nil {
		return err
	}
	w.Secrets = slices.Insert(w.Secrets, 0, Secret{ID: newID(w.UpdatedAt), Kind: kindOf(secret), Sealed: sealed, CreatedAt: w.UpdatedAt})
	return nil
}

// tlsKeyOf is what the key of a webhook's client certificate is bound to, so that it is not taken for a signing secret.
func tlsKeyOf(webhookID string) string { return webhookID + " tls" }

// headerOf is the same for the value of one of its headers.
func headerOf(webhookID, name string) string { return webhookID + " header " + name }

// changeSealed replaces each ciphertext among the options of a webhook by what change makes of it.
func (w *Webhook) changeSealed(change func(owner, sealed string) (string, error)) (err error) {
	if w.TLS.SealedKey != "" {
		if w.TLS.SealedKey, err = change(tlsKeyOf(w.ID), w.TLS.SealedKey); err != nil {
			return err
		}
	}
	w.SealedHeaders = maps.Clone(w.SealedHeaders)
	for name, sealed := range w.SealedHeaders {
		if w.SealedHeaders[name], err = change(headerOf(w.ID, name), sealed); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dispatcher) seal(owner, secret string) (string, error) {
	sealed, err := d.box.SealFor(owner, secret)
	if err != nil {
		return "", Errorf(CodeInternal, "encrypt the secret: %w", err)
	}
	return sealed, nil
}

// secretError says why a secret can't be had and what to do about it.
func secretError(what string, err error) error {
	if errors.Is(err, secretbox.ErrForeign) {
		return fmt.Errorf("the webhook's %s was encrypted for another webhook, or not by Posthorn: someone has exchanged it in the database; set it again", what)
	}
	return fmt.Errorf("the webhook's %s can't be decrypted with this node's secret keys (POSTHORN_SECRET_KEYS, Config.SecretKeys); "+
		"set it again or add the key that encrypted it", what)
}

// KeyStatus says how far the signing secrets are encrypted with the first of the keys.
type KeyStatus struct {
	First      string // fingerprint of the first key: 16 hexadecimal digits
	Keys       int
	Left       int // secrets that are yet to be encrypted with it: as long as there are some, the other keys are needed
	Unreadable int // secrets that none of the keys decrypts, or that were not encrypted for their webhook
}

// KeyStatus looks through all secrets. When none is left, and none unreadable, the keys but the first can be removed, once no other
// node has another first key.
func (d *Dispatcher) KeyStatus(ctx context.Context) (KeyStatus, error) {
	status := KeyStatus{First: d.box.First(), Keys: d.box.Len()}
	err := eachWebhook(ctx, d.store, "", func(w Webhook, _ int64) error {
		_, left, unreadable := d.examine(w)
		status.Left += left
		status.Unreadable += unreadable
		return nil
	})
	if err != nil {
		return KeyStatus{}, err
	}
	_, current, err := d.checkText(ctx)
	if err == nil && !current {
		status.Left++
	}
	return status, err
}

// eachWebhook goes through the webhooks of a repo, or of all, some at a time.
func eachWebhook(ctx context.Context, store Store, repoID string, do func(w Webhook, total int64) error) error {
	for q := (WebhookQuery{RepoID: repoID, Limit: 200}); ; {
		page, err := store.Webhooks(ctx, q)
		if err != nil {
			return err
		}
		for _, w := range page.Items {
			if err := do(w, page.Total); err != nil {
				return err
			}
		}
		if page.Next == 0 {
			return nil
		}
		q.After = page.Next
	}
}

// examine counts the secrets of a webhook that are to be encrypted anew, and those that can't be, and reports whether
// tidySecrets would change anything.
func (d *Dispatcher) examine(w Webhook) (untidy bool, left, unreadable int) {
	kept := w.unexpired(d.clock.now())
	untidy = len(kept) < len(w.Secrets)
	for _, s := range kept {
		text, current, err := d.box.OpenImported(w.ID, s.Sealed)
		switch {
		case err != nil:
			unreadable++
		case !current:
			left++
		}
		untidy = untidy || s.ID == "" || err == nil && s.Kind != kindOf(text)
	}
	_ = w.changeSealed(func(owner, sealed string) (string, error) {
		switch _, current, err := d.box.OpenFor(owner, sealed); {
		case err != nil:
			unreadable++
		case !current:
			left++
		}
		return sealed, nil
	})
	return untidy || left > 0, left, unreadable
}

// unexpired returns the secrets of a webhook that sign; where all have expired, all of them: without any it would be a webhook
// that is not meant to be signed.
func (w *Webhook) unexpired(now time.Time) []Secret {
	live := slices.DeleteFunc(slices.Clone(w.Secrets), func(s Secret) bool { return !s.live(now) })
	if len(live) == 0 {
		return w.Secrets
	}
	return live
}

// tidySecrets removes the secrets of a webhook that have expired, and sees to it that the others are encrypted with the first
// key, bound to the webhook and have an ID. What can't be read stays as it is.
func (d *Dispatcher) tidySecrets(w *Webhook) error {
	now := d.clock.now()
	w.Secrets = w.unexpired(now)
	for i := range w.Secrets {
		s := &w.Secrets[i]
		text, current, err := d.box.OpenImported(w.ID, s.Sealed)
		if err == nil && !current {
			if s.Sealed, err = d.seal(w.ID, text); err != nil {
				return err
			}
		}
		if s.ID == "" {
			s.ID, s.Kind, s.CreatedAt = newID(now), SecretHMAC, w.CreatedAt
		}
		if text != "" {
			s.Kind = kindOf(text)
		}
	}
	return w.changeSealed(func(owner, sealed string) (string, error) {
		text, current, err := d.box.OpenFor(owner, sealed)
		if err != nil || current {
			return sealed, nil //nolint:nilerr // what can't be read stays
		}
		return d.seal(owner, text)
	})
}

func (d *Dispatcher) resealWebhook(ctx context.Context, w Webhook) (Webhook, error) {
	w, err := d.store.UpdateWebhook(ctx, w.RepoID, w.ID, d.tidySecrets)
	if err == nil {
		d.subscriptions.invalidate(w.RepoID, w.Seq)
	}
	return w, err
}

// checkText returns what tells whether keys are those of the store, and whether it is encrypted with the first of them.
func (d *Dispatcher) checkText(ctx context.Context) (text string, current bool, err error) {
	sealed, err := d.store.Setting(ctx, keyCheck, "")
	if err != nil {
		return "", false, err
	}
	text, current, err = d.box.OpenFor(keyCheck, sealed)
	if err != nil {
		err = Errorf(CodeUnavailable, "the secret keys do not fit the database any more: others have been put in their place")
	}
	return text, current, err
}

// reseal encrypts anew the secrets that are not encrypted with the first key and bound to their webhook: after keys were
// changed, and those that an import brought in. When it is interrupted, the next one goes on with what is left. It reports
// whether it got to the end.
func (d *Dispatcher) reseal(ctx context.Context) bool {
	const doing = "encrypt signing secrets anew"
	seen, done, unreadableOnes, told := int64(0), 0, 0, time.Now()
	err := eachWebhook(ctx, d.store, "", func(w Webhook, total int64) error {
		untidy, left, unreadable := d.examine(w)
		seen++
		unreadableOnes += unreadable
		if untidy {
			began := time.Now()
			if _, err := d.resealWebhook(ctx, w); err != nil && ErrorCode(err) != CodeNotFound { // deleted meanwhile
				return err
			}
			done += left
			select { // half of the time is left to what the store is for
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Since(began)):
			}
		}
		if done > 0 && time.Since(told) > complainEvery {
			told = time.Now()
			d.log.Info("encrypting signing secrets with the first key", "done", done, "webhooksLeft", max(0, total-seen))
		}
		return nil
	})
	if err == nil {
		err = d.resealCheck(ctx)
	}
	if err != nil {
		d.storeFailed(doing, err)
		return false
	}
	if done > 0 {
		d.log.Info("encrypted signing secrets with the first key", "secrets", done)
	}
	if unreadableOnes > 0 {
		d.log.Warn("signing secrets can't be decrypted: the deliveries of their webhooks fail until they are set again",
			"secrets", unreadableOnes)
	}
	if d.box.Len() > 1 && unreadableOnes == 0 {
		d.log.Info("no signing secret needs other keys than the first: on all nodes the others can be removed, once each has this one first",
			"keys", d.box.Len(), "first", d.box.First())
	}
	return true
}

func (d *Dispatcher) resealCheck(ctx context.Context) error {
	text, current, err := d.checkText(ctx)
	if err != nil || current {
		return err
	}
	sealed, err := d.seal(keyCheck, text)
	if err != nil {
		return err
	}
	return d.store.SetSetting(ctx, keyCheck, sealed)
}
