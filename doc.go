// Package posthorn delivers webhooks: it takes an event, stores it durably, POSTs it signed to every webhook that
// subscribes to it, retries what fails, logs every attempt, and sends again on request.
//
// A [Dispatcher] does all that, on a [Store]; package sqlite has one that needs nothing but a file, package postgres one
// for many machines:
//
//	store, err := sqlite.Open(ctx, "posthorn.db")
//	d, err := posthorn.New(store, posthorn.Config{})
//	err = d.Start(ctx)
//	defer d.Stop(ctx)
//
// Events happen in a repo, the tenant: an opaque id of the host program's. A [Webhook] subscribes a URL to event types of
// one repo:
//
//	hook, err := d.CreateWebhook(ctx, posthorn.NewWebhook{
//		RepoID: "r1", URL: "https://example.com/hook", Events: []string{"push"}, Secret: "s3cret",
//	})
//
// From then on [Dispatcher.Dispatch] sends it what happens there:
//
//	receipt, err := d.Dispatch(ctx, posthorn.Event{RepoID: "r1", Type: "push", Payload: musehub.PushPayload{RepoID: "r1"}})
//
// [Dispatcher.DispatchBatch] does the same for many events at once, all or none.
//
// # What is promised
//
// Accepted means durable: when Dispatch has returned, the event and its queue entries are committed and fsynced, and no
// crash loses them. Each reaches its webhook at least once. A request that is repeated after a crash carries the same
// delivery id, and every request for an event the same webhook-id, so that receivers can tell.
//
// What is signed, sent, logged and sent again are the same bytes.
//
// One bad webhook harms nobody: each has a queue, a limit of requests in flight and a back-off of its own, and those that
// keep failing can't take up what others need.
//
// Requests go to public addresses only, unless [Config.AllowTargets] opens others. That is decided on the resolved address,
// for each connection. Redirects are not followed, and proxies of the environment not used.
//
// # What a receiver gets
//
// A POST with the payload as its body, X-MuseHub-Event, X-MuseHub-Delivery, the headers of Standard Webhooks 1.0.0
// (webhook-id, webhook-timestamp), and, when the webhook has a secret, the signatures X-MuseHub-Signature and
// webhook-signature, which package signature verifies (of an Ed25519 key, the latter alone). It answers with any status from 200 to 299 within ten seconds.
// Everything else is a failure, and is tried again as [Config.RetryPolicy] says.
//
// # Running it
//
// A Dispatcher may run in several processes on one store, if the store can be shared, as that of package postgres; each is a
// node. Nodes lease what they work on, and take over what a dead one leaves. Limits, and the order of first attempts, are
// each node's own.
//
// [Dispatcher.DispatchTx] accepts an event in a transaction of the host's own, if that is in the store's database: the event
// is delivered if and only if the transaction commits.
//
// The command posthorn (cmd/posthorn) is this library with a REST API (package httpapi) in front of it.
package posthorn
