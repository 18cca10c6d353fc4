// Package musehub has the event types of MuseHub and the payload of each.
//
// A program that dispatches events fills in a payload and names its type; a
// receiver unmarshals the body of a request into the payload that the
// X-MuseHub-Event header stands for:
//
//	posthorn.Event{
//		RepoID:  "r1",
//		Type:    musehub.Push,
//		Payload: musehub.PushPayload{RepoID: "r1", Branch: "main", CommitCount: 3},
//	}
//
// The order of a payload's fields is the order of the keys in its JSON, which is
// what gets signed and sent. All fields are always present, except for a
// mergeCommitId that is empty.
package musehub

// The types of events. [Ping] tests a webhook, which gets it whatever it
// subscribes to.
const (
	Push        = "push"
	Issue       = "issue"
	Proposal    = "proposal"
	PullRequest = "pull_request"
	Release     = "release"
	Branch      = "branch"
	Tag         = "tag"
	Session     = "session"
	Analysis    = "analysis"
	Ping        = "ping"
)

// EventTypes returns the types that a webhook can subscribe to, which is all of
// them but [Ping]. Each call returns a new slice, always in the same order.
func EventTypes() []string {
	return []string{Push, Issue, Proposal, PullRequest, Release, Branch, Tag, Session, Analysis}
}

// PushPayload is the payload of [Push]: commits have arrived on a branch.
type PushPayload struct {
	RepoID       string `json:"repoId"`
	Branch       string `json:"branch"`
	HeadCommitID string `json:"headCommitId"` // the branch's last commit now
	PushedBy     string `json:"pushedBy"`
	CommitCount  int    `json:"commitCount"`
}

// IssuePayload is the payload of [Issue].
type IssuePayload struct {
	RepoID  string `json:"repoId"`
	Action  string `json:"action"` // opened, closed or reopened
	IssueID string `json:"issueId"`
	Number  int    `json:"number"` // counts within the repo
	Title   string `json:"title"`
	State   string `json:"state"`
}

// ProposalPayload is the payload of [Proposal], a request to merge a branch.
type ProposalPayload struct {
	RepoID        string `json:"repoId"`
	Action        string `json:"action"` // opened, merged or closed
	ProposalID    string `json:"proposalId"`
	Title         string `json:"title"`
	FromBranch    string `json:"fromBranch"`
	ToBranch      string `json:"toBranch"`
	State         string `json:"state"`
	MergeCommitID string `json:"mergeCommitId,omitempty"` // when merged
}

// PullRequestPayload is the payload of [PullRequest].
type PullRequestPayload struct {
	RepoID        string `json:"repoId"`
	Action        string `json:"action"` // opened or merged
	PRID          string `json:"prId"`
	Title         string `json:"title"`
	FromBranch    string `json:"fromBranch"`
	ToBranch      string `json:"toBranch"`
	State         string `json:"state"`
	MergeCommitID string `json:"mergeCommitId,omitempty"` // when merged
}

// ReleasePayload is the payload of [Release].
type ReleasePayload struct {
	RepoID    string `json:"repoId"`
	Action    string `json:"action"` // such as published
	ReleaseID string `json:"releaseId"`
	Tag       string `json:"tag"`
	Title     string `json:"title"`
}

// BranchPayload is the payload of [Branch].
type BranchPayload struct {
	RepoID       string `json:"repoId"`
	Action       string `json:"action"` // such as created or deleted
	Name         string `json:"name"`
	HeadCommitID string `json:"headCommitId"`
}

// TagPayload is the payload of [Tag].
type TagPayload struct {
	RepoID   string `json:"repoId"`
	Action   string `json:"action"` // such as created or deleted
	Name     string `json:"name"`
	CommitID string `json:"commitId"`
}

// SessionPayload is the payload of [Session], a recording session.
type SessionPayload struct {
	RepoID    string `json:"repoId"`
	Action    string `json:"action"` // such as started or ended
	SessionID string `json:"sessionId"`
	Title     string `json:"title"`
}

// AnalysisPayload is the payload of [Analysis], an analysis of a repo's music.
type AnalysisPayload struct {
	RepoID     string `json:"repoId"`
	Action     string `json:"action"` // such as started or finished
	AnalysisID string `json:"analysisId"`
	Kind       string `json:"kind"` // what is analysed, such as key or tempo
	State      string `json:"state"`
}
