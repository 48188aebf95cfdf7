cat >main.go <<'END'
package main

import (
	"net/smtp"
	"os"
)

func main() {
	mailbox := os.Getenv("MAILBOX")
	auth := smtp.PlainAuth("", mailbox, "x", "localhost")
	mail := "From: " + mailbox + "\r\nTo: " + mailbox + "\r\nSubject: " + os.Getenv("SUBJECT") + "\r\n\r\nHello\r\n"
	if err := smtp.SendMail("localhost:"+os.Getenv("SMTP_PORT"), auth, mailbox, []string{mailbox}, []byte(mail)); err != nil {
		panic(err)
	}
}
END
GO111MODULE=off GOFLAGS= go run main.go
