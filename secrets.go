package posthorn

import (
	"context"

	"github.com/musehub/posthorn/internal/secretbox"
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
	initial, err := box.Seal("posthorn")
	if err != nil {
		return nil, Errorf(CodeInternal, "encrypt with the secret keys: %w", err)
	}
	check, err := store.Setting(ctx, keyCheck, initial)
	if err != nil {
		return nil, err
	}
	if _, _, err := box.Open(check); err != nil {
		return nil, Errorf(CodeInvalid, "the secret keys do not fit this database: none of them decrypts its secrets. "+
			"Start with the keys that it was made with (POSTHORN_SECRET_KEYS, Config.SecretKeys or its key file); "+
			"to change keys, put the new one first and keep the old ones behind it")
	}
	return box, nil
}

func (d *Dispatcher) seal(secret string) (Secret, error) {
	sealed, err := d.box.Seal(secret)
	if err != nil {
		return Secret{}, Errorf(CodeInternal, "encrypt the secret: %w", err)
	}
	return Secret{Sealed: sealed}, nil
}

// sealPlaintexts encrypts the secrets that an import brought in as plaintext. It reports whether it got to the end.
func (d *Dispatcher) sealPlaintexts(ctx context.Context) bool {
	sealed := 0
	for q := (WebhookQuery{Limit: 200}); ; {
		page, err := d.store.Webhooks(ctx, q)
		if err != nil {
			d.storeFailed("look for secrets that are not encrypted", err)
			return false
		}
		for _, w := range page.Items {
			if !hasPlaintext(w) {
				continue
			}
			switch err := d.sealSecrets(ctx, w); {
			case err == nil:
				sealed++
			case ErrorCode(err) != CodeNotFound: // deleted meanwhile
				d.storeFailed("encrypt secrets that were imported as plaintext", err)
				return false
			}
		}
		if page.Next == 0 {
			break
		}
		q.After = page.Next
	}
	if sealed > 0 {
		d.log.Info("encrypted secrets that had been imported as plaintext", "webhooks", sealed)
	}
	return true
}

func hasPlaintext(w Webhook) bool {
	for _, s := range w.Secrets {
		if !secretbox.IsSealed(s.Sealed) {
			return true
		}
	}
	return false
}

func (d *Dispatcher) sealSecrets(ctx context.Context, w Webhook) error {
	_, err := d.store.UpdateWebhook(ctx, w.RepoID, w.ID, func(w *Webhook) error {
		for i, s := range w.Secrets {
			if secretbox.IsSealed(s.Sealed) {
				continue
			}
			sealed, err := d.seal(s.Sealed)
			if err != nil {
				return err
			}
			w.Secrets[i].Sealed = sealed.Sealed
		}
		return nil
	})
	if err == nil {
		d.subscriptions.invalidate(w.RepoID, w.Seq)
	}
	return err
}
