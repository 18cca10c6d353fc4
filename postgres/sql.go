package postgres

import (
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
)

// names puts the store's schema into statements. They are written for the schema "posthorn", and name it everywhere, so
// that they mean the same in a host's transaction, whatever its search_path.
type names struct {
	quoted   string // the schema, as an identifier in SQL
	replacer *strings.Replacer
	texts    sync.Map // from a statement as it is written to how it is sent
}

func newNames(schema string) *names {
	quoted := pgx.Identifier{schema}.Sanitize()
	return &names{
		quoted: quoted,
		// 'posthorn.x' is a name in a string, as nextval takes it.
		replacer: strings.NewReplacer(
			"'posthorn.", "'"+strings.ReplaceAll(quoted, "'", "''")+".",
			"posthorn.", quoted+".",
		),
	}
}

// sql returns a statement for the schema. There is a limited number of them, so they are kept.
func (n *names) sql(text string) string {
	if sql, ok := n.texts.Load(text); ok {
		return sql.(string)
	}
	sql := n.replacer.Replace(text)
	n.texts.Store(text, sql)
	return sql
}

// batch gathers statements that are sent together, in one round trip.
type batch struct {
	pgx.Batch
	names *names
}

// queue adds a statement. Its result is read by the function that is given to one of the methods of what it returns.
func (b *batch) queue(text string, args ...any) *pgx.QueuedQuery {
	return b.Queue(b.names.sql(text), args...)
}
