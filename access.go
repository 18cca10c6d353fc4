package posthorn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Who may do what, and who did what: API tokens and the audit log.

// Scope is something that a token allows.
type Scope string

// The scopes. None includes another, but for ScopeAdmin.
const (
	ScopeWebhooksRead    Scope = "webhooks:read" // and their secrets' ids and public keys
	ScopeWebhooksWrite   Scope = "webhooks:write"
	ScopeDeliveriesRead  Scope = "deliveries:read"
	ScopeDeliveriesWrite Scope = "deliveries:write" // redeliver, replay, poll
	ScopeEventsRead      Scope = "events:read"
	ScopeEventsWrite     Scope = "events:write"
	ScopeAuditRead       Scope = "audit:read"
	// ScopeAdmin includes all others, and tokens, the whole audit log and the state of the encryption keys. It goes with all
	// repos only.
	ScopeAdmin Scope = "admin"
)

// Scopes returns all scopes.
func Scopes() []Scope {
	return []Scope{
		ScopeWebhooksRead, ScopeWebhooksWrite, ScopeDeliveriesRead, ScopeDeliveriesWrite, ScopeEventsRead, ScopeEventsWrite,
		ScopeAuditRead, ScopeAdmin,
	}
}

// Token is an API token as it is stored. Its text is shown once, by [Dispatcher.CreateToken], and then is only known as a hash.
type Token struct {
	Seq        int64 // the store's number for it, ascending in the order of creation
	ID         string
	Name       string // what it is for
	Scopes     []Scope
	Repos      []string // what it is good for, unless AllRepos
	AllRepos   bool
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
	LastUsedAt time.Time // to about a minute; zero: never
}

// NewToken is what [Dispatcher.CreateToken] takes.
type NewToken struct {
	Name      string // free text of at most [MaxTokenNameLength] characters
	Scopes    []Scope
	Repos     []string // at most [MaxTokenRepos]
	AllRepos  bool     // in place of Repos
	ExpiresAt time.Time
}

const (
	// MaxTokenNameLength is how many characters a token's name may have.
	MaxTokenNameLength = 200
	// MaxTokenRepos is how many repos a token may name.
	MaxTokenRepos = 100
)

// TokenPrefix is what every token's text begins with, by which scanners for secrets recognise it. 26 characters of A to Z and 2 to 7
// follow, which are random, and 7 that are a checksum of what stands before.
const TokenPrefix = "posthorn_"

const (
	tokenLength = len(TokenPrefix) + 26 + 7
	// tokenFresh is for how long a token is good that the store was asked for: so long one may still be accepted that was
	// revoked on another node.
	tokenFresh      = time.Second
	tokenUsedEvery  = time.Minute
	maxCachedTokens = 10_000
)

var checksumDigits = base32.StdEncoding.WithPadding(base32.NoPadding)

// newTokenText makes a token of 130 bits of randomness.
func newTokenText() string {
	text := TokenPrefix + rand.Text()
	return text + checksum(text)
}

func checksum(text string) string {
	sum := crc32.ChecksumIEEE([]byte(text))
	return checksumDigits.EncodeToString([]byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// wellFormed reports whether a text can be a token, so that the store is not asked for others.
func wellFormed(text string) bool {
	return len(text) == tokenLength && strings.HasPrefix(text, TokenPrefix) && checksum(text[:tokenLength-7]) == text[tokenLength-7:]
}

// hashToken is how a token is stored. It is random enough that a plain hash can't be inverted.
func hashToken(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// CreateToken makes an API token and returns its text, which nobody can find out later.
func (d *Dispatcher) CreateToken(ctx context.Context, n NewToken) (Token, string, error) {
	now := d.clock.now()
	if err := checkToken(n, now); err != nil {
		return Token{}, "", err
	}
	for _, repo := range n.Repos {
		if err := d.checkRepo(ctx, repo); err != nil {
			return Token{}, "", err
		}
	}
	t := Token{
		ID: newID(now), Name: n.Name, Scopes: slices.Clone(n.Scopes), Repos: slices.Clone(n.Repos), AllRepos: n.AllRepos,
		CreatedAt: now, ExpiresAt: n.ExpiresAt.UTC().Truncate(time.Microsecond),
	}
	text := newTokenText()
	ctx = d.audited(ctx, AuditEntry{Action: "token.create", Subject: t.ID, Detail: t.describe()})
	if err := d.store.CreateToken(ctx, &t, hashToken(text)); err != nil {
		return Token{}, "", err
	}
	return t, text, nil
}

func checkToken(n NewToken, now time.Time) error {
	if n.Name == "" || utf8.RuneCountInString(n.Name) > MaxTokenNameLength || !utf8.ValidString(n.Name) || strings.ContainsRune(n.Name, 0) {
		return invalid("name", "it is empty, longer than %d characters, or not UTF-8: say what the token is for", MaxTokenNameLength)
	}
	if len(n.Scopes) == 0 {
		return invalid("scopes", "it is empty: name at least one of %s", scopeNames())
	}
	for i, scope := range n.Scopes {
		if !slices.Contains(Scopes(), scope) {
			return invalid("scopes", "there is no scope %.64q; there are %s", scope, scopeNames())
		}
		if slices.Contains(n.Scopes[:i], scope) {
			return invalid("scopes", "%q stands in it twice", scope)
		}
	}
	switch {
	case n.AllRepos && len(n.Repos) > 0:
		return invalid("repos", "the token is for all repos already")
	case !n.AllRepos && len(n.Repos) == 0:
		return invalid("repos", "it is empty: name the repos that the token is for, or make it for all")
	case len(n.Repos) > MaxTokenRepos:
		return invalid("repos", "%d repos: at most %d", len(n.Repos), MaxTokenRepos)
	case !n.AllRepos && slices.Contains(n.Scopes, ScopeAdmin):
		return invalid("scopes", "the scope %s is for tokens of all repos only", ScopeAdmin)
	case !n.ExpiresAt.IsZero() && !n.ExpiresAt.After(now):
		return invalid("expiresAt", "it is over already")
	case n.ExpiresAt.UTC().Year() > 9999: // RFC 3339 can't write it
		return invalid("expiresAt", "it is after the year 9999")
	}
	for i, repo := range n.Repos {
		if slices.Contains(n.Repos[:i], repo) {
			return invalid("repos", "%.256q stands in it twice", repo)
		}
	}
	return nil
}

func scopeNames() string {
	var names []string
	for _, s := range Scopes() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

// describe is what the audit log says of a token.
func (t *Token) describe() string {
	repos := "all repos"
	if !t.AllRepos {
		repos = strings.Join(t.Repos, ", ")
	}
	return fmt.Sprintf("%q, %v, for %s", t.Name, t.Scopes, repos)
}

// TokenQuery selects tokens, in the order of their creation.
type TokenQuery struct {
	After int64 // only those whose Seq is greater
	Limit int   // zero: no limit
}

// Tokens returns a page of the API tokens, expired ones too.
func (d *Dispatcher) Tokens(ctx context.Context, q TokenQuery) (Page[Token], error) {
	return d.store.Tokens(ctx, q)
}

// RevokeToken removes an API token. It is refused from then on, on other nodes within a second.
func (d *Dispatcher) RevokeToken(ctx context.Context, id string) error {
	err := d.store.DeleteToken(d.audited(ctx, AuditEntry{Action: "token.revoke", Subject: id}), id)
	d.tokens.clear()
	return err
}

// Authenticate returns the token with the given text, which it takes as used. CodeUnauthorized when there is none, or it has
// expired.
func (d *Dispatcher) Authenticate(ctx context.Context, text string) (Token, error) {
	if !wellFormed(text) {
		return Token{}, Errorf(CodeUnauthorized, "this is no token of Posthorn's, or a part of it is missing")
	}
	hash, now := hashToken(text), d.clock.now()
	t, generation, ok := d.tokens.get(hash)
	asked := time.Now()
	if !ok {
		var err error
		t, err = d.store.TokenByHash(ctx, hash)
		if ErrorCode(err) == CodeNotFound {
			return Token{}, Errorf(CodeUnauthorized, "there is no such token: it was revoked, or is another server's")
		}
		if err != nil {
			return Token{}, err
		}
	}
	if !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) {
		return Token{}, Errorf(CodeUnauthorized, "the token expired at %s", t.ExpiresAt.Format(time.RFC3339))
	}
	if ok {
		return t, nil
	}
	if now.Sub(t.LastUsedAt) >= tokenUsedEvery {
		if err := d.store.TouchToken(ctx, t.ID, now); err != nil {
			d.storeFailed("note the use of a token", err) // which is no reason to refuse it
		}
		t.LastUsedAt = now
	}
	d.tokens.put(hash, t, generation, asked)
	return t, nil
}

// tokenCache has the tokens that the store was asked for a moment ago.
type tokenCache struct {
	mu         sync.Mutex
	byHash     map[string]cachedToken
	generation int // of what may be put in: nothing that was read before a token was revoked
}

type cachedToken struct {
	token Token
	until time.Time
}

func (c *tokenCache) get(hash string) (t Token, generation int, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cached, ok := c.byHash[hash]
	return cached.token, c.generation, ok && time.Now().Before(cached.until)
}

// put keeps a token for a while from when the store was asked for it, however long it took to get here.
func (c *tokenCache) put(hash string, t Token, generation int, asked time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if generation != c.generation {
		return
	}
	if c.byHash == nil || len(c.byHash) >= maxCachedTokens {
		c.byHash = map[string]cachedToken{}
	}
	c.byHash[hash] = cachedToken{t, asked.Add(tokenFresh)}
}

func (c *tokenCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.byHash = nil
	c.generation++
}

// AuditEntry is a line of the audit log: who changed what, when. It never has a secret's value, nor a URL, which may be as good as
// one.
type AuditEntry struct {
	Seq     int64 // the store's number for it, ascending
	At      time.Time
	Actor   string // who, as [ContextWithActor] named them; empty: the program itself
	Action  string // what, such as "webhook.update"
	RepoID  string // empty: no repo in particular
	Subject string // the ID of the webhook, token, delivery or replay
	Detail  string // such as the names of the fields that were changed
}

// AuditQuery selects entries of the audit log, the newest first.
type AuditQuery struct {
	RepoID string // empty: of all repos and of none
	Before int64  // only those whose Seq is less; zero: from the newest on
	Limit  int
}

// AuditLog returns a page of the audit log. Its Total is not counted.
//
// It has an entry for each webhook, secret and token that was created, changed or removed, for each webhook that was disabled, for each
// redelivery, and for each replay that was started or canceled, written in the same transaction as the change itself, and keeps them
// for [Config.AuditRetention]. [Config.RepoExists] is not asked, so that the log of a repo that is gone can be read.
func (d *Dispatcher) AuditLog(ctx context.Context, q AuditQuery) (Page[AuditEntry], error) {
	return d.store.AuditLog(ctx, q)
}

type (
	actorKey struct{}
	auditKey struct{}
)

// ContextWithActor returns a context whose changes the audit log ascribes to an actor, such as "user:alice".
func ContextWithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// ActorOf returns the actor of a context, or the empty string.
func ActorOf(ctx context.Context) string {
	actor, _ := ctx.Value(actorKey{}).(string)
	return actor
}

// AuditOf returns the entry that a [Store] is to add to the audit log when it writes with this context, or nil.
func AuditOf(ctx context.Context) *AuditEntry {
	entry, _ := ctx.Value(auditKey{}).(*AuditEntry)
	return entry
}

// WithAudit returns a context for one write of a [Store], to which an entry of the audit log belongs.
func WithAudit(ctx context.Context, entry AuditEntry) context.Context {
	return context.WithValue(ctx, auditKey{}, &entry)
}

// audited returns the context for one write of the store's, which goes into the audit log.
func (d *Dispatcher) audited(ctx context.Context, entry AuditEntry) context.Context {
	entry.At = d.clock.now()
	entry.Actor = strings.ToValidUTF8(strings.ReplaceAll(ActorOf(ctx), "\x00", ""), "\ufffd") // so that any store takes it
	return WithAudit(ctx, entry)
}
