package bench

// Growth is what a store that has grown large does to the figures.
type Growth struct{}
