package tunnel

// aside runs f in a goroutine of its own, and returns when it has. What a TLS handshake or a JSON parser needs of a stack
// is 8 KiB and more, of which a goroutine that then waits for days gives next to nothing back; one that ends gives all.
func aside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
}
