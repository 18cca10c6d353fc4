package postgres

import (
	"cmp"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/musehub/posthorn"
)

const (
	// DefaultSchema is the schema of Posthorn's tables where none is configured.
	DefaultSchema = "posthorn"
	// DefaultMaxConns is how many connections a store takes where no number is configured.
	DefaultMaxConns = 10

	connectTimeout = 5 * time.Second
	// maxName is how many bytes an identifier of PostgreSQL's may have. It cuts off what is longer, without an error.
	maxName = 63
)

// Config is what can be configured beside the URL. The zero value works.
type Config struct {
	// Schema is where Posthorn's tables are. Any name will do, and is taken as it is, in its case. Defaults to
	// [DefaultSchema].
	Schema string
	// MaxConns is how many connections a store opens at most. One more listens for notifications, if the store is asked to
	// (see [Store.Listen]). Defaults to what the URL says as pool_max_conns, and else to [DefaultMaxConns].
	MaxConns int
}

// database is where Posthorn's tables are.
type database struct {
	pool   *pgxpool.Config
	schema string
}

// parse takes a URL, or a connection string of another kind that PostgreSQL's own programs understand. Its errors never quote
// it: it has a password.
func parse(url string, cfg Config) (*database, error) {
	if url == "" {
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "the database's URL is empty")
	}
	pool, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "the database's URL is malformed; it looks like "+
			"postgres://user:password@host:5432/database, with each special character of the password as %%XX")
	}
	d := &database{pool: pool, schema: cmp.Or(cfg.Schema, DefaultSchema)}
	if len(d.schema) > maxName || strings.HasPrefix(d.schema, "pg_") || !storable(d.schema) {
		return nil, posthorn.Errorf(posthorn.CodeInvalid,
			"the schema %.80q can't be: a name has at most %d bytes of UTF-8, and does not begin with pg_", d.schema, maxName)
	}
	switch {
	case cfg.MaxConns < 0 || cfg.MaxConns > 1<<15:
		return nil, posthorn.Errorf(posthorn.CodeInvalid, "%d is no number of connections", cfg.MaxConns)
	case cfg.MaxConns > 0:
		pool.MaxConns = int32(cfg.MaxConns)
	case !strings.Contains(url, "pool_max_conns"):
		pool.MaxConns = DefaultMaxConns
	}
	conn := pool.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = connectTimeout
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "posthorn"
	}
	return d, nil
}

// String names the database, for the operator: those who call over the network need not know where it is.
func (d *database) String() string {
	conn := d.pool.ConnConfig
	where := conn.Host // perhaps the folder of a socket
	if !strings.HasPrefix(where, "/") {
		where = net.JoinHostPort(conn.Host, strconv.Itoa(int(conn.Port)))
	}
	return fmt.Sprintf("database %q at %s", conn.Database, where)
}
