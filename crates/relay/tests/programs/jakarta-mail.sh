cat >Mail.java <<'END'
import jakarta.mail.*;
import jakarta.mail.internet.*;
import jakarta.mail.search.SubjectTerm;
import java.util.Properties;

public class Mail {
    static final String MAILBOX = System.getenv("MAILBOX"), SUBJECT = System.getenv("SUBJECT");

    static Session session() {
        Properties settings = new Properties();
        settings.put("mail.smtp.host", "localhost");
        settings.put("mail.smtp.port", System.getenv("SMTP_PORT"));
        settings.put("mail.smtp.auth", "true");
        for (String protocol : new String[] {"imap", "pop3"}) {
            settings.put("mail." + protocol + ".host", "localhost");
            settings.put("mail." + protocol + ".port", System.getenv(protocol.toUpperCase() + "_PORT"));
        }
        return Session.getInstance(settings, new Authenticator() {
            @Override
            protected PasswordAuthentication getPasswordAuthentication() {
                return new PasswordAuthentication(MAILBOX, "x");
            }
        });
    }

    static void send() throws MessagingException {
        MimeMessage message = new MimeMessage(session());
        message.setFrom(MAILBOX);
        message.setRecipients(Message.RecipientType.TO, MAILBOX);
        message.setSubject(SUBJECT);
        message.setText("Hello");
        Transport.send(message);
    }

    static void read(String protocol) throws MessagingException {
        try (Store store = session().getStore(protocol)) {
            store.connect();
            try (Folder inbox = store.getFolder("INBOX")) {
                inbox.open(Folder.READ_ONLY);
                System.out.println(protocol + " " + inbox.search(new SubjectTerm(SUBJECT)).length);
            }
        }
    }

    public static void main(String[] arguments) throws MessagingException {
        if (arguments.length == 0) send();
        for (String protocol : arguments) read(protocol);
    }
}
END
java -cp "$PROGRAMS/jars/*" Mail.java
await_mail
java -cp "$PROGRAMS/jars/*" Mail.java imap pop3 >read
printf 'imap 1\npop3 1\n' | diff - read
