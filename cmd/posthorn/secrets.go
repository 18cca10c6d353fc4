package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"
)

type secretsCmd struct {
	List       listSecretsCmd  `cmd:"" help:"List the secrets that sign the deliveries of a webhook, without their values."`
	Rotate     rotateSecretCmd `cmd:"" help:"Put a new secret in front; those before it go on signing for a while."`
	Revoke     revokeSecretCmd `cmd:"" help:"Make a secret stop signing at once."`
	PublicKeys publicKeysCmd   `cmd:"" help:"List the public keys of a webhook that signs with Ed25519 keys."`
}

// secret is a signing secret as the API gives it, or a part of that.
type secret struct {
	SecretID  string    `json:"secretId"`
	Kind      string    `json:"kind"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
	issued
}

// issued is what the API shows of a secret once.
type issued struct {
	Secret    string `json:"secret"`
	PublicKey string `json:"publicKey"`
}

func (i issued) show() error {
	err := details(field{"secret", i.Secret}, field{"public key", i.PublicKey})
	if err == nil && i.Secret != "" {
		_, err = fmt.Fprintln(os.Stderr, "Give the secret to the receiver now: it can't be shown again.")
	}
	return err
}

func (s secret) row() []string {
	return []string{s.SecretID, s.Kind, timestamp(s.CreatedAt), timestamp(s.ExpiresAt)}
}

type listSecretsCmd struct {
	connection
	repoFlag
	webhookArg
}

// Run lists the secrets, newest first.
func (c *listSecretsCmd) Run() error {
	type answer struct{ Secrets []secret }
	return perform(c.connection, request{method: http.MethodGet, path: c.path("webhooks", c.Webhook, "secrets")}, func(a answer) error {
		var rows [][]string
		for _, s := range a.Secrets {
			rows = append(rows, s.row())
		}
		return table(os.Stdout, []string{"SECRET", "KIND", "CREATED", "EXPIRES"}, rows)
	})
}

type rotateSecretCmd struct {
	connection
	repoFlag
	webhookArg
	Secret  string         `env:"POSTHORN_NEW_SECRET" placeholder:"SECRET" help:"An own secret, or an Ed25519 key whsk_…. Without it one is made and printed, this once."`
	Kind    string         `env:"-" default:"" enum:",hmac,ed25519" placeholder:"KIND" help:"What to make: hmac, or ed25519 for a key of which the receiver gets the public part (default hmac)."`
	Overlap *time.Duration `env:"-" placeholder:"DURATION" help:"How long the former secrets go on signing beside the new one; 0s revokes them at once (default 24h)."`
}

// Help is what --help shows below the summary.
func (*rotateSecretCmd) Help() string {
	return `While both secrets sign, receivers can change from the one to the other without refusing a delivery. After a leak there
is no time for that:

    posthorn secrets rotate --repo r1 WEBHOOK
    posthorn secrets rotate --repo r1 WEBHOOK --overlap 0s

The newest hmac secret signs X-MuseHub-Signature, all of them sign webhook-signature.`
}

// Run rotates the secret.
func (c *rotateSecretCmd) Run() error {
	body := map[string]any{}
	if c.Secret != "" {
		body["secret"] = c.Secret
	}
	if c.Kind != "" {
		body["kind"] = c.Kind
	}
	if c.Overlap != nil {
		body["overlap"] = wholeSeconds(*c.Overlap)
	}
	return perform(c.connection, request{method: http.MethodPost, path: c.path("webhooks", c.Webhook, "secrets"), body: body}, func(s secret) error {
		if err := details(field{"id", s.SecretID}, field{"kind", s.Kind}); err != nil {
			return err
		}
		return s.issued.show()
	})
}

type revokeSecretCmd struct {
	connection
	repoFlag
	webhookArg
	Secret string `arg:"" name:"secret" env:"-" help:"The secret's ID, as secrets list shows it."`
}

// Run revokes the secret.
func (c *revokeSecretCmd) Run() error {
	api, err := c.connect()
	if err != nil {
		return err
	}
	answer, err := api.call(context.Background(), request{method: http.MethodDelete, path: c.path("webhooks", c.Webhook, "secrets", c.Secret)})
	if err != nil {
		return err
	}
	return c.print(answer, func() error {
		_, err := fmt.Println("revoked", printable(c.Secret))
		return err
	})
}

type publicKeysCmd struct {
	connection
	repoFlag
	webhookArg
}

// Run lists the public keys, newest first.
func (c *publicKeysCmd) Run() error {
	type answer struct{ PublicKeys []secret }
	return perform(c.connection, request{method: http.MethodGet, path: c.path("webhooks", c.Webhook, "public-keys")}, func(a answer) error {
		var rows [][]string
		for _, s := range a.PublicKeys {
			rows = append(rows, append([]string{s.PublicKey}, s.row()...))
		}
		return table(os.Stdout, []string{"PUBLIC KEY", "SECRET", "KIND", "CREATED", "EXPIRES"}, rows)
	})
}
