cat >send.php <<'END'
<?php
require '/usr/share/php/libphp-phpmailer/autoload.php';
$mail = new PHPMailer\PHPMailer\PHPMailer(true);
$mail->isSMTP();
$mail->Host = 'localhost';
$mail->Port = (int) getenv('SMTP_PORT');
$mail->SMTPAuth = true;
$mail->Username = getenv('MAILBOX');
$mail->Password = 'x';
$mail->SMTPSecure = '';
$mail->SMTPAutoTLS = false;
$mail->setFrom(getenv('MAILBOX'));
$mail->addAddress(getenv('MAILBOX'));
$mail->Subject = getenv('SUBJECT');
$mail->Body = 'Hello';
$mail->send();
END
php send.php
