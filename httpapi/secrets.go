package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/musehub/posthorn"
	"github.com/musehub/posthorn/signature"
)

// secretJSON is a signing secret as the API shows it: without its value.
type secretJSON struct {
	SecretID  string  `json:"secretId"`
	Kind      string  `json:"kind" enum:"hmac,ed25519" doc:"hmac: a secret that the receiver has as well; ed25519: a private key, whose public key is at public-keys"`
	CreatedAt string  `json:"createdAt" format:"date-time"`
	ExpiresAt *string `json:"expiresAt" format:"date-time" doc:"When it stops signing; null: it goes on"`
}

func showSecret(s *posthorn.Secret) secretJSON {
	return secretJSON{SecretID: s.ID, Kind: string(s.Kind), CreatedAt: timestamp(s.CreatedAt), ExpiresAt: optional(s.ExpiresAt)}
}

type secretListJSON struct {
	Secrets []secretJSON `json:"secrets" nullable:"false"`
}

// issuedJSON is what is shown of a secret once, when it was generated.
type issuedJSON struct {
	Secret    string `json:"secret,omitempty" doc:"The secret, if it was generated: whsec_… It is shown this once"`
	PublicKey string `json:"publicKey,omitempty" doc:"Of an Ed25519 key that was generated or given: whpk_… The private key is never shown"`
}

// newSecretJSON is the body that rotates a secret.
type newSecretJSON struct {
	_       struct{} `additionalProperties:"false"`
	Secret  string   `json:"secret,omitempty" doc:"An own secret, or an Ed25519 key whsk_…; one is generated if it isn't given"`
	Kind    string   `json:"kind,omitempty" enum:"hmac,ed25519" doc:"What to generate; hmac if it isn't given"`
	Overlap *int64   `json:"overlap,omitempty" minimum:"0" maximum:"31536000" doc:"For how many seconds the secrets before it go on signing as well, so that receivers can change over; 0 revokes them at once; 86400 if it isn't given"`
}

type newSecretAnswerJSON struct {
	secretJSON
	issuedJSON
}

type publicKeyJSON struct {
	PublicKey string `json:"publicKey" doc:"whpk_ and the base64 of 32 bytes, which verifies v1a signatures"`
	secretJSON
}

type publicKeyListJSON struct {
	PublicKeys []publicKeyJSON `json:"publicKeys" nullable:"false"`
}

type keyStatusJSON struct {
	First      string `json:"first" doc:"Fingerprint of the first key, which encrypts: 16 hexadecimal digits"`
	Keys       int    `json:"keys" doc:"How many keys the server that answers has"`
	Left       int    `json:"left" doc:"Secrets that are yet to be encrypted with the first key; the others are needed until there is none"`
	Unreadable int    `json:"unreadable" doc:"Secrets that no key decrypts, or that were not encrypted for their webhook: set them again"`
}

type newSecretInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	jsonBody[newSecretJSON]
}

type secretInput struct {
	RepoID    string `path:"repoId"`
	WebhookID string `path:"webhookId"`
	SecretID  string `path:"secretId"`
}

func (s *server) registerSecrets() {
	tags := []string{"secrets"}
	const path = "/repos/{repoId}/webhooks/{webhookId}"
	operation(s, huma.Operation{
		OperationID: "rotateSecret", Method: http.MethodPost, Path: path + "/secrets", Tags: tags,
		Summary: "Put a new signing secret in front", DefaultStatus: http.StatusCreated,
		Description: "The secrets before it go on signing for the overlap. The newest hmac secret signs X-MuseHub-Signature, all sign " +
			"webhook-signature. At most 10 sign at a time: 409.",
	}, posthorn.ScopeWebhooksWrite, s.rotateSecret)
	operation(s, huma.Operation{
		OperationID: "listSecrets", Method: http.MethodGet, Path: path + "/secrets", Tags: tags,
		Summary: "List the signing secrets", Description: "Those that sign, the newest first, without their values.",
	}, posthorn.ScopeWebhooksRead, s.listSecrets)
	operation(s, huma.Operation{
		OperationID: "revokeSecret", Method: http.MethodDelete, Path: path + "/secrets/{secretId}", Tags: tags,
		Summary: "Revoke a signing secret",
		Description: "It signs nothing any more. The last one that doesn't expire can only be replaced, by a new one with an overlap of 0: " +
			"409, so that nothing is unsigned by mistake.",
	}, posthorn.ScopeWebhooksWrite, s.revokeSecret)
	operation(s, huma.Operation{
		OperationID: "listPublicKeys", Method: http.MethodGet, Path: path + "/public-keys", Tags: tags,
		Summary: "List the public keys", Description: "Of the secrets that sign and are Ed25519 keys, the newest first.",
	}, posthorn.ScopeWebhooksRead, s.listPublicKeys)
	operation(s, huma.Operation{
		OperationID: "getSecretKeys", Method: http.MethodGet, Path: "/secret-keys", Tags: tags,
		Summary: "Say whether keys at rest can be removed",
		Description: "Looks through all webhooks for secrets that are not yet encrypted with the first key. The server encrypts them in the " +
			"background.",
	}, posthorn.ScopeAdmin, s.getSecretKeys)
}

// issue returns the secret to use and what the answer shows of it: an own one, or one that is generated.
func issue(own, kind string) (secret string, shown issuedJSON, err error) {
	switch kind {
	case "", string(posthorn.SecretHMAC), string(posthorn.SecretEd25519):
	default:
		return "", issuedJSON{}, invalid("kind", "it is hmac or ed25519")
	}
	secret = own
	if own == "" {
		if kind == string(posthorn.SecretEd25519) {
			secret = signature.GeneratePrivateKey()
		} else {
			secret = signature.GenerateSecret()
			shown.Secret = secret
		}
	}
	public, err := signature.PublicKey(secret)
	isKey := err == nil
	if isKey {
		shown.PublicKey = public
	}
	if own != "" && kind != "" && isKey != (kind == string(posthorn.SecretEd25519)) {
		return "", issuedJSON{}, invalid("kind", "the secret that was given is not of this kind: an ed25519 one begins with whsk_")
	}
	return secret, shown, nil
}

// overlapOf returns an overlap that was given in seconds.
func overlapOf(field string, seconds *int64) (time.Duration, error) {
	if seconds == nil {
		return posthorn.DefaultSecretOverlap, nil
	}
	if *seconds < 0 || *seconds > maxSecretOverlap {
		return 0, invalid(field, "it must be 0 to %d seconds", maxSecretOverlap)
	}
	return time.Duration(*seconds) * time.Second, nil
}

func (s *server) rotateSecret(ctx context.Context, in *newSecretInput) (*output[newSecretAnswerJSON], error) {
	overlap, err := overlapOf("overlap", in.body.Overlap)
	if err != nil {
		return nil, err
	}
	secret, shown, err := issue(in.body.Secret, in.body.Kind)
	if err != nil {
		return nil, err
	}
	added, err := s.dispatcher.RotateSecret(ctx, in.RepoID, in.WebhookID, secret, overlap)
	if err != nil {
		return nil, err
	}
	return &output[newSecretAnswerJSON]{newSecretAnswerJSON{showSecret(&added), shown}}, nil
}

func (s *server) listSecrets(ctx context.Context, in *webhookInput) (*output[secretListJSON], error) {
	secrets, err := s.dispatcher.Secrets(ctx, in.RepoID, in.WebhookID)
	if err != nil {
		return nil, err
	}
	return &output[secretListJSON]{secretListJSON{showAll(secrets, showSecret)}}, nil
}

func (s *server) revokeSecret(ctx context.Context, in *secretInput) (*struct{}, error) {
	return nil, s.dispatcher.RevokeSecret(ctx, in.RepoID, in.WebhookID, in.SecretID)
}

func (s *server) listPublicKeys(ctx context.Context, in *webhookInput) (*output[publicKeyListJSON], error) {
	keys, err := s.dispatcher.PublicKeys(ctx, in.RepoID, in.WebhookID)
	if err != nil {
		return nil, err
	}
	return &output[publicKeyListJSON]{publicKeyListJSON{showAll(keys, func(k *posthorn.PublicKey) publicKeyJSON {
		return publicKeyJSON{k.Key, showSecret(&k.Secret)}
	})}}, nil
}

func (s *server) getSecretKeys(ctx context.Context, _ *struct{}) (*output[keyStatusJSON], error) {
	status, err := s.dispatcher.KeyStatus(ctx)
	if err != nil {
		return nil, err
	}
	return &output[keyStatusJSON]{keyStatusJSON(status)}, nil
}
