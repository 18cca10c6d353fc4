// Command outbox shows webhooks that are sent if and only if a transaction of the host program commits.
//
// A shop keeps its orders in a table of its own, in the database that Posthorn is on, too. An order and the event that
// tells of it are written in one transaction: there is no order without its webhook, and no webhook without its order.
//
//	go run ./examples/outbox                    # on a SQLite file in a temporary folder
//	go run ./examples/outbox shop.db            # on a SQLite file that stays
//	go run ./examples/outbox postgres://…/shop  # on a PostgreSQL database
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"github.com/musehub/posthorn"
)

const (
	repo   = "shop" // the tenant: a program with many has a repo for each
	secret = "it's a secret"

	// secretKey encrypts the webhooks' secrets in the database. Keep yours out of the source; posthorn keys generate makes one.
	secretKey = "dGhlIGtleSBvZiB0aGUgb3V0Ym94IGV4YW1wbGUhISE=" //nolint:gosec // it opens nothing but this example
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "posthorn-outbox")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	database := filepath.Join(dir, "shop.db")
	if len(args) > 0 {
		database = args[0]
	}
	s, err := openDatabase(ctx, database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	r, err := receive(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	hook, err := s.posthorn.CreateWebhook(ctx, posthorn.NewWebhook{RepoID: repo, URL: r.url, Events: []string{"order"}, Secret: secret})
	if err != nil {
		return err
	}
	defer s.posthorn.DeleteWebhook(ctx, repo, hook.ID) // nobody listens there any more

	committed := 0
	for _, o := range []order{{"clara", "horn", 1}, {"robert", "horn", 9}, {"fanny", "flute", 2}} {
		switch err := s.place(ctx, o); {
		case errors.Is(err, errOutOfStock):
			fmt.Fprintf(out, "rolled back: %d %s for %s\n", o.Pieces, o.Item, o.Customer)
		case err != nil:
			return err
		default:
			committed++
			fmt.Fprintf(out, "committed: %d %s for %s\n", o.Pieces, o.Item, o.Customer)
		}
	}
	for range committed {
		select {
		case body := <-r.bodies:
			fmt.Fprintf(out, "arrived: %s\n", body)
		case <-ctx.Done():
			return fmt.Errorf("not all webhooks have arrived: %w", ctx.Err())
		}
	}
	return nil
}

// shop is the host program.
type shop struct {
	db       *sql.DB
	store    posthorn.Store
	outbox   func(*sql.Tx) posthorn.Tx // what DispatchTx takes, made of a transaction of db
	posthorn *posthorn.Dispatcher
}

type order struct {
	Customer string `json:"customer"`
	Item     string `json:"item"`
	Pieces   int    `json:"pieces"`
}

var errOutOfStock = errors.New("out of stock")

// place takes an order. Its row, its event and what it takes from the stock are committed together or not at all.
func (s *shop) place(ctx context.Context, o order) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // does nothing after Commit
	_, err = tx.ExecContext(ctx, "INSERT INTO orders (customer, item, pieces) VALUES ($1, $2, $3)", o.Customer, o.Item, o.Pieces)
	if err != nil {
		return err
	}
	_, err = s.posthorn.DispatchTx(ctx, s.outbox(tx), posthorn.Event{RepoID: repo, Type: "order", Payload: o})
	if err != nil {
		return err
	}
	// The event stands in the transaction by now. If what follows fails, it has never been there.
	taken, err := tx.ExecContext(ctx, "UPDATE stock SET pieces = pieces - $1 WHERE item = $2 AND pieces >= $1", o.Pieces, o.Item)
	if err != nil {
		return err
	}
	if rows, err := taken.RowsAffected(); err != nil {
		return err
	} else if rows == 0 {
		return errOutOfStock
	}
	return tx.Commit()
}

func (s *shop) open(ctx context.Context) (err error) {
	for _, statement := range []string{
		"CREATE TABLE IF NOT EXISTS orders (customer TEXT NOT NULL, item TEXT NOT NULL, pieces INTEGER NOT NULL)",
		"CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, pieces INTEGER NOT NULL)",
		"INSERT INTO stock VALUES ('horn', 5), ('flute', 5) ON CONFLICT (item) DO UPDATE SET pieces = 5",
	} {
		if _, err := s.db.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	s.posthorn, err = posthorn.New(s.store, posthorn.Config{
		SecretKeys:   []string{secretKey},
		EventTypes:   []string{"order"},
		AllowTargets: []string{"127.0.0.1"}, // where the receiver is; otherwise only public addresses are open
	})
	if err != nil {
		return err
	}
	return s.posthorn.Start(ctx)
}

func (s *shop) close(ctx context.Context) (err error) {
	if s.posthorn != nil {
		err = s.posthorn.Stop(ctx) // lets requests in flight finish
	}
	return errors.Join(err, s.db.Close(), s.store.Close())
}
